"""Picture files of a user: found, and decoded by several threads ahead of whoever uses them."""

import collections
import concurrent.futures
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax.data import images
from alexnet_jax.data.listing import list_images
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.runtime.environment import usable_cores

# Few enough to share out evenly, enough that handing them over costs nothing: single small files
# keep threads waiting for each other.
_RUN = 16

Picture = pathlib.Path | Image.Image | np.ndarray


def find(arguments: Iterable[str]) -> list[pathlib.Path]:
  """The picture files that words of a command mean.

  Args:
    arguments: files, taken as they are, and folders, of which all picture files at any depth are
      taken in order of name.

  Raises:
    UserError: a folder has none.
  """
  found: list[pathlib.Path] = []
  for argument in arguments:
    path = expand(argument, 'picture')
    if not path.is_dir():
      found.append(path)
      continue
    inside = list_images(path).files
    if not inside:
      raise UserError(f'the folder {path} has no pictures ({" ".join(images.EXTENSIONS)})')
    found += [path / file for file in inside]
  return found


def as_list(given: Any) -> tuple[list[Picture], bool]:
  """Pictures in the forms that a program may have them in.

  Args:
    given: one picture: a path, a PIL image, or uint8 (H, W, 3) RGB, (H, W, 1) or (H, W) gray. Or
      many: an iterable of such, or uint8 (N, H, W, 3) or (N, H, W, 1).

  Returns:
    A list of pictures as `images.square` takes them, and whether a single one was given.

  Raises:
    UserError: something is neither.
  """
  one = _as_picture(given)
  if one is not None:
    return [one], True
  items = [given]
  if hasattr(given, '__array__'):
    items = list(given) if np.ndim(given) in (1, 4) else items
  elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, Mapping)):
    items = list(given)
  pictures: list[Picture] = []
  for item in items:
    picture = _as_picture(item)
    if picture is None:
      has_shape = hasattr(item, 'shape') and hasattr(item, 'dtype')
      what = f'of {item.dtype}, shape {tuple(item.shape)}' if has_shape else f'{item!r:.60}'
      raise UserError(
        f'input {len(pictures) + 1}, {type(item).__name__} {what}, is no picture: give paths, PIL'
        ' images, or uint8 arrays (H, W, 3), (H, W, 1) or (H, W), one or many, or (N, H, W, 3)'
      )
    pictures.append(picture)
  return pictures, False


def _as_picture(item: Any) -> Picture | None:
  if isinstance(item, (str, os.PathLike)):
    return expand(item, 'picture')
  if isinstance(item, Image.Image):
    return item
  if not hasattr(item, '__array__'):
    return None
  pixels = np.asarray(item)
  if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[2:] not in ((), (1,), (3,)):
    return None
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  return pixels if pixels.ndim >= 2 else None


def batches(
  pictures: Sequence[Picture], size: int, resize: str, batch_size: int, upright: bool = False
) -> Iterator[list[np.ndarray | images.UnreadableImage]]:
  """Decodes images in order, a few batches ahead, on all cores.

  Threads are as fast as processes here, since decoders release the interpreter, and start at once.

  Args:
    pictures: see `images.square`.
    size, resize, upright: see `images.square`.
    batch_size: images in each list but the last.

  Yields:
    Lists of what `images.square` returned or raised.
  """

  def decode(picture: Picture) -> np.ndarray | images.UnreadableImage:
    try:
      return images.square(picture, size, resize, upright)
    except images.UnreadableImage as error:
      return error

  def decode_run(first: int) -> list[np.ndarray | images.UnreadableImage]:
    return [decode(picture) for picture in pictures[first : first + _RUN]]

  def decoded() -> Iterator[np.ndarray | images.UnreadableImage]:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for first in range(0, len(pictures), _RUN):
      waiting.append(pool.submit(decode_run, first))
      if len(waiting) * _RUN >= 3 * batch_size:
        yield from waiting.popleft().result()
    for run in waiting:
      yield from run.result()

  pool = concurrent.futures.ThreadPoolExecutor(usable_cores(), thread_name_prefix='decode')
  try:
    # `images` silences Pillow while it decodes, which in one thread ends that of another.
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', module=r'PIL\.')
      found = decoded()
      while batch := list(itertools.islice(found, batch_size)):
        yield batch
  finally:
    pool.shutdown(cancel_futures=True)
