"""From stored uint8 images to the float views a net sees: pure functions of keys and images.

Training draws, per image: a crop, a mirror, a color shift (paper section 4.1; CHM convdata.py and
convdata_jpeg.py).  Testing takes fixed views.  Unlike the 2012 code, which shared one crop and
mirror among 32 consecutive images, every image has draws of its own, from a key that depends on
(seed, step, position in the global batch) alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# cuda-convnet2 make-data/input_meta, `color_pca` of the ILSVRC-2012 training set on 0-255 RGB:
# standard deviations (not eigenvalues) and, as columns, the eigenvectors they belong to.
COLOR_STDEVS_2012 = (19.7208, 37.0939, 121.7801)
COLOR_EIGENVECTORS_2012 = (
  (0.417955, -0.712579, -0.563510),
  (-0.816981, -0.023542, -0.576184),
  (0.397311, 0.701196, -0.592003),
)

# torchvision's constants for [0, 1] inputs, times 255.
TORCHVISION_MEAN = tuple(255 * x for x in (0.485, 0.456, 0.406))
TORCHVISION_STD = tuple(255 * x for x in (0.229, 0.224, 0.225))

CENTER_VIEW = ((0.5, 0.5, 0),)
_CORNERS_AND_CENTER = ((0, 0), (0, 1), (0.5, 0.5), (1, 0), (1, 1))
# The ten views of paper section 4.1 and the nine of the cropped CIFAR nets (cuda-convnet
# convdata.py), as (row, column, mirrored) with places in fractions of the free border.
VIEWS = {
  1: CENTER_VIEW,
  9: tuple((y, x, 0) for y in (0, 0.5, 1) for x in (0, 0.5, 1)),
  10: tuple((y, x, mirrored) for mirrored in (0, 1) for y, x in _CORNERS_AND_CENTER),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Turns a uint8 view into a net's input: (pixels - mean) * scale, with color noise in training.

  Attributes:
    crop: side of the view in pixels.
    mean: float32, (crop, crop, 3) or (3,).  As in 2012 (convdata.py, data_mean_crop) the central
      crop of the mean image is subtracted wherever the view was cut.
    scale: float32 (3,), applied after the color noise.
    resize_to: side to which stored images are enlarged (bilinear) first; 0 leaves them.
    random_crop, random_flip: whether training draws them.
    color_basis: float32 (3, 3); row i is the i-th principal component times its standard
      deviation.
    upright: whether images are rotated as their EXIF orientation says before they are resized; see
      `Store.upright`.
  """

  crop: int
  mean: np.ndarray
  scale: np.ndarray
  color_basis: np.ndarray
  resize_to: int = 0
  random_crop: bool = True
  random_flip: bool = True
  upright: bool = False

  def training_views(self, images: jax.Array, keys: jax.Array, color_noise: jax.Array) -> jax.Array:
    """Random views.

    Args:
      images: uint8 (N, S, S, 3).
      keys: one PRNG key per image, (N,).
      color_noise: scalar, standard deviation of the color noise in units of the components'
        own (0.1 in the paper); 0 switches it off.

    Returns:
      float32 (N, crop, crop, 3).
    """
    images = enlarge(images, self.resize_to)
    border = images.shape[1] - self.crop
    crop_keys, mirror_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    if self.random_crop and border:
      offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, border + 1, jnp.int32))(
        crop_keys
      )
    else:
      offsets = jnp.full((len(images), 2), border // 2, jnp.int32)
    if self.random_flip:
      mirrored = jax.vmap(jax.random.bernoulli)(mirror_keys)
    else:
      mirrored = jnp.zeros(len(images), bool)
    views = cut(images, offsets, mirrored, self.crop)
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(noise_keys) @ self.color_basis
    # The 2012 code shrinks image plus noise so that its size stays that of a test image.
    shifted = views.astype(jnp.float32) - self.mean + color_noise * noise[:, None, None]
    return shifted * (self.scale / (1 + color_noise))

  def test_view(self, images: jax.Array, view: jax.Array) -> jax.Array:
    """One fixed view of every image.

    Args:
      images: uint8 (N, S, S, 3).
      view: (row, column, mirrored), a row of `VIEWS`.

    Returns:
      float32 (N, crop, crop, 3).
    """
    images = enlarge(images, self.resize_to)
    border = images.shape[1] - self.crop
    offset = jnp.floor(view[:2] * border).astype(jnp.int32)
    start = (jnp.int32(0), *offset, jnp.int32(0))
    views = lax.dynamic_slice(images, start, (len(images), self.crop, self.crop, 3))
    views = jnp.where(view[2] > 0, views[:, :, ::-1], views)
    return (views.astype(jnp.float32) - self.mean) * self.scale


def enlarge(images: jax.Array, size: int) -> jax.Array:
  """Bilinear enlargement of (N, S, S, C) to float32 (N, size, size, C); none if size is 0."""
  if not size:
    return images
  shape = (images.shape[0], size, size, images.shape[3])
  return jax.image.resize(jnp.asarray(images, jnp.float32), shape, 'bilinear')


def cut(images: jax.Array, offsets: jax.Array, mirrored: jax.Array, size: int) -> jax.Array:
  """(N, size, size, C) from (N, S, S, C): of each image from the (row, column) of `offsets` on.

  Where `mirrored`, bool (N,), columns are in reverse order.
  """

  def by_slices(images, offsets, mirrored):
    shape = (size, size, images.shape[3])
    starts = jnp.pad(offsets, ((0, 0), (0, 1)))
    views = jax.vmap(lambda image, start: lax.dynamic_slice(image, start, shape))(images, starts)
    return jnp.where(mirrored[:, None, None, None], views[:, :, ::-1], views)

  def by_products(images, offsets, mirrored):
    # 0 to 255 are exact in bfloat16, and each sum has one term.  Of slices TPU's compiler makes a
    # loop over the images that copies the batch in each pass (docs/performance.md).
    def ones(places, offset):  # (N, size, S)
      return (places + offset)[:, :, None] == jnp.arange(images.shape[1])

    forward = jnp.arange(size)
    columns = jnp.where(mirrored[:, None], forward[::-1], forward)
    x = images.astype(jnp.bfloat16)
    x = jnp.einsum('nih,nhwc->niwc', ones(forward, offsets[:, :1]).astype(x.dtype), x)
    x = jnp.einsum('njw,niwc->nijc', ones(columns, offsets[:, 1:]).astype(x.dtype), x)
    return x.astype(images.dtype)

  # Enlarged images are float32, and small ones stay on the chip: 5 % fewer cycles for 32 pixels.
  if images.dtype != jnp.uint8 or images.shape[1] < 64:
    return by_slices(images, offsets, mirrored)
  return lax.platform_dependent(images, offsets, mirrored, tpu=by_products, default=by_slices)


def central(image: np.ndarray, crop: int) -> np.ndarray:
  """The central (crop, crop, 3) of a larger square image."""
  start = (image.shape[0] - crop) // 2
  return image[start : start + crop, start : start + crop]


def example_keys(seed: int, step: jax.Array, position: jax.Array) -> jax.Array:
  """Keys (N,) of the examples at `position` (N,) of the global batch of a step."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda each: jax.random.fold_in(key, each))(position)
