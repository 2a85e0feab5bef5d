"""The mean image and the principal components of RGB, from exact integer sums.

Integer sums do not depend on the order of addition, so the statistics are the same to the bit
however the work was divided.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums over images.

  Attributes:
    count: number of images.
    pixels: uint64 (S, S, 3), sum over images.
    products: int64 (3, 3), sum over images and pixels of R, G, B times R, G, B. ImageNet's reach
      5.5e15, far below 2**63.
  """

  count: int
  pixels: np.ndarray
  products: np.ndarray

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(
      self.count + other.count, self.pixels + other.pixels, self.products + other.products
    )


def sums(images: np.ndarray) -> Sums:
  """Sums over uint8 images (n, S, S, 3)."""
  products = np.zeros((3, 3), np.int64)
  for image in images:
    colors = _chunks(image.reshape(-1, 3).T)
    for i in range(3):
      for j in range(i, 3):
        product = int(np.vecdot(colors[i], colors[j]).sum(dtype=np.float64))
        products[i, j] += product
        products[j, i] = products[i, j]
  return Sums(len(images), images.sum(axis=0, dtype=np.uint64), products)


def _chunks(colors: np.ndarray) -> np.ndarray:
  """uint8 (3, n) as float32 (3, m, 256), zeros at the end.

  float32 is exact here, and fast: products of 256 pairs of bytes sum to less than 2**24.
  """
  padding = -colors.shape[1] % 256
  if padding:
    colors = np.pad(colors, ((0, 0), (0, padding)))
  return colors.astype(np.float32, order='C').reshape(3, -1, 256)


def mean_image(totals: Sums) -> np.ndarray:
  """The per-pixel mean, float32 (S, S, 3), 0..255."""
  return (totals.pixels / totals.count).astype(np.float32)


def color_components(totals: Sums) -> tuple[np.ndarray, np.ndarray]:
  """Principal components of the RGB values of all pixels (paper section 4.1).

  Returns:
    stdevs: float64 (3,), square roots of the eigenvalues of the covariance, ascending, in gray
      levels 0..255, as in cuda-convnet2's input_meta `color_pca` (ImageNet: 19.72, 37.09, 121.78).
    eigenvectors: float64 (3, 3), column i belongs to stdevs[i]; its largest element is positive.
  """
  n = totals.count * totals.pixels.shape[0] * totals.pixels.shape[1]
  total = [int(x) for x in totals.pixels.sum(axis=(0, 1))]
  covariance = np.array(
    [
      [(n * int(totals.products[i, j]) - total[i] * total[j]) / n**2 for j in range(3)]
      for i in range(3)
    ]
  )
  eigenvalues, eigenvectors = np.linalg.eigh(covariance)
  largest = eigenvectors[np.abs(eigenvectors).argmax(axis=0), range(3)]
  return np.sqrt(np.maximum(eigenvalues, 0)), eigenvectors * np.sign(largest)
