"""The mean image and the principal components of RGB, from exact integer sums.

Integer sums do not depend on the order of addition, so the statistics are the same to the bit
however the work was divided.
"""

import numpy as np


class Sums:
  """Sums over images.

  Attributes:
    count: number of images.
    pixels: int64 (S, S, 3), sum over images.
    products: int64 (3, 3), sum over images and pixels of R, G, B times R, G, B. ImageNet's reach
      5.5e15, far below 2**63.
  """

  def __init__(self, image_size: int):
    self.count = 0
    self.pixels = np.zeros((image_size, image_size, 3), np.int64)
    self.products = np.zeros((3, 3), np.int64)

  def add_image(self, image: np.ndarray) -> None:
    """Adds one image, uint8 (S, S, 3)."""
    colors = image.transpose(2, 0, 1).astype(np.float64, order='C')  # sums of integers are exact
    self.products += np.vecdot(colors[:, None], colors).sum(axis=-1).astype(np.int64)
    self.pixels += image
    self.count += 1

  def mean_image(self) -> np.ndarray:
    """The per-pixel mean, float32 (S, S, 3), 0..255."""
    return (self.pixels / self.count).astype(np.float32)

  def color_components(self) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the RGB values of all pixels (paper section 4.1).

    Returns:
      stdevs: float64 (3,), square roots of the eigenvalues of the covariance, ascending, in gray
        levels 0..255, as in cuda-convnet2's input_meta `color_pca` (ImageNet: 19.72, 37.09,
        121.78).
      eigenvectors: float64 (3, 3), column i belongs to stdevs[i]; its largest element is positive.
    """
    n = self.count * self.pixels.shape[0] * self.pixels.shape[1]
    total = self.pixels.sum(axis=(0, 1)).astype(object)  # Python's integers do not overflow
    covariance = (n * self.products.astype(object) - np.outer(total, total)) / n**2
    eigenvalues, eigenvectors = np.linalg.eigh(covariance.astype(np.float64))
    largest = eigenvectors[np.abs(eigenvectors).argmax(axis=0), range(3)]
    return np.sqrt(np.maximum(eigenvalues, 0)), eigenvectors * np.sign(largest)
