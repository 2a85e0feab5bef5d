"""Data sets that need no download: scikit-learn's digits, and synthetic images."""

import dataclasses

import numpy as np
from PIL import Image

from alexnet_jax.data import order
from alexnet_jax.data.examples import Example, Source

# Which digits are for validation must not change with the seed of training.
VALIDATION_SEED = 1798


def digits(image_size: int, validation_fraction: float) -> Source:
  """scikit-learn's 1,797 digits (Alpaydin and Kaynak, UCI): 8x8, values 0..16 scaled to 0..255.

  Args:
    image_size: side of the images in pixels, to which they are enlarged bilinearly.
    validation_fraction: part for validation, in (0, 1); always the same examples.
  """
  from sklearn import datasets  # takes a second to import

  raw = datasets.load_digits()
  images = np.rint(raw.images * (255 / 16)).astype(np.uint8)
  validation = round(len(images) * validation_fraction)
  shuffled = order.permutation(VALIDATION_SEED, 0, len(images))

  def example(index: int) -> Example:
    size = image_size, image_size
    pixels = Image.fromarray(images[index]).resize(size, Image.Resampling.BILINEAR)
    return Example(np.asarray(pixels), int(raw.target[index]), f'digit {index}')

  return Source(
    name='digits',
    classes=tuple(str(name) for name in raw.target_names),
    train=[example(index) for index in np.sort(shuffled[validation:])],
    eval=[example(index) for index in np.sort(shuffled[:validation])],
    fingerprint=f'digits, {validation} of {len(images)} held out',
  )


@dataclasses.dataclass(frozen=True)
class SyntheticSplit:
  """Generated images: a wave of color that belongs to the class, shifted a little, plus noise.

  Everything is a function of the class number and of `first + index`.
  """

  classes: int
  size: int
  image_size: int
  first: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self.size:
      raise IndexError(index)
    label = index % self.classes
    of_class = np.random.Generator(np.random.Philox(key=[label, 0]))
    frequency = of_class.uniform(-4, 4, 2)  # waves along each side of the image
    color = of_class.uniform(-70, 70, (2, 3))  # amplitudes of cosine and sine for R, G, B
    of_image = np.random.Generator(np.random.Philox(key=[self.first + index, 1]))
    phase = of_image.uniform(-0.8, 0.8)  # radians: small enough to keep the classes apart

    side = np.arange(self.image_size, dtype=np.float32) * (2 * np.pi / self.image_size)
    angle = (side[:, None] * frequency[0] + side[None, :] * frequency[1] + phase).astype(np.float32)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    noise = np.frombuffer(of_image.bytes(angle.size * 3), np.uint8).reshape(*angle.shape, 3)
    pixels = waves @ color.astype(np.float32) + (noise * np.float32(0.25) + np.float32(96))
    return Example(
      np.clip(pixels, 0, 255).astype(np.uint8), label, f'synthetic {self.first + index}'
    )


def synthetic(classes: int, examples: int, image_size: int) -> Source:
  """Synthetic images: `examples` for training, max(classes, examples // 8) for validation."""
  return Source(
    name='synthetic',
    classes=tuple(f'class{label:04}' for label in range(classes)),
    train=SyntheticSplit(classes, examples, image_size, first=0),
    eval=SyntheticSplit(classes, max(classes, examples // 8), image_size, first=examples),
    fingerprint=f'synthetic, {examples} examples of {classes} classes',
  )
