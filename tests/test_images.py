"""Decoding and resizing: every kind of file that image sets hold, and a reference resizer."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import images
from alexnet_jax.data.images import UnreadableImage, read_image


def encode(image, file_format, **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def photo(height, width, seed=0):
  """A smooth random image, uint8 (height, width, 3)."""
  noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(('height', 'width'), [(90, 130), (131, 64), (20, 24), (48, 33), (64, 64)])
@pytest.mark.parametrize('resize', ['crop', 'warp'])
def test_resize_agrees_with_torch(height, width, resize):
  torch = pytest.importorskip('torch')
  size, pixels = 32, photo(height, width)
  scale = size / min(height, width)
  target = (size, size) if resize == 'warp' else (round(height * scale), round(width * scale))
  mode = 'bicubic' if size > min(height, width) else 'bilinear'
  planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double()
  resized = torch.nn.functional.interpolate(planes, target, mode=mode, antialias=True)
  top, left = (target[0] - size) // 2, (target[1] - size) // 2
  expected = resized[0, :, top : top + size, left : left + size].permute(1, 2, 0).clamp(0, 255)
  got = read_image(encode(Image.fromarray(pixels), 'PNG'), size, resize)
  assert got.shape == (size, size, 3) and got.dtype == np.uint8
  difference = np.abs(got - expected.numpy())  # Pillow rounds and clips after each direction
  assert difference.mean() < 0.5 and difference.max() < 4


def test_crop_takes_the_center():
  pixels = photo(32, 64)
  assert np.array_equal(
    read_image(encode(Image.fromarray(pixels), 'PNG'), 32, 'crop'), pixels[:, 16:48]
  )
  assert np.array_equal(read_image(pixels[:, :32], 32, 'warp'), pixels[:, :32])


def test_gray_becomes_three_equal_channels():
  gray = photo(32, 32)[:, :, 0]
  for data in (gray, encode(Image.fromarray(gray), 'PNG')):
    assert np.array_equal(read_image(data, 32, 'crop'), np.repeat(gray[:, :, None], 3, axis=2))
  assert len(set(read_image(encode(Image.fromarray(gray), 'JPEG'), 32, 'crop')[3, 3])) == 1


def test_sixteen_bit_gray_is_scaled():
  gray = (photo(32, 32)[:, :, 0].astype(np.uint16) << 8) + 99
  got = read_image(encode(Image.fromarray(gray), 'PNG'), 32, 'crop')
  assert np.array_equal(got[:, :, 0], gray >> 8)


def test_cmyk_jpeg():
  pixels = photo(32, 32)
  cmyk = Image.fromarray(pixels).convert('CMYK')
  got = read_image(encode(cmyk, 'JPEG', quality=100, subsampling=0), 32, 'crop')
  assert np.abs(got.astype(int) - pixels).mean() < 3


def test_transparent_becomes_white():
  rgba = np.dstack([photo(32, 32), np.full((32, 32), 255, np.uint8)])
  rgba[:16, :, 3] = 0
  got = read_image(encode(Image.fromarray(rgba), 'PNG'), 32, 'crop')
  assert (got[:16] == 255).all() and np.array_equal(got[16:], rgba[16:, :, :3])


def test_palette_with_transparency():
  palette = Image.new('P', (32, 32), 1)
  palette.putpalette([0, 0, 0, 10, 20, 30])
  opaque = read_image(encode(palette, 'PNG'), 32, 'crop')
  assert (opaque == [10, 20, 30]).all()
  assert (read_image(encode(palette, 'PNG', transparency=1), 32, 'crop') == 255).all()
  assert (read_image(encode(palette, 'PNG', transparency=b'\xff\x00'), 32, 'crop') == 255).all()


@pytest.mark.parametrize('file_format', images.FORMATS)
def test_the_format_is_found_in_the_bytes(file_format):
  options = {'lossless': True} if file_format == 'WEBP' else {}
  got = read_image(
    encode(Image.new('RGB', (40, 32), (0, 0, 255)), file_format, **options), 32, 'crop'
  )
  assert np.abs(got.astype(int) - [0, 0, 255]).max() <= 2


TURNED = {  # EXIF 2.3, tag 0x0112
  2: lambda pixels: pixels[:, ::-1],
  3: lambda pixels: pixels[::-1, ::-1],
  4: lambda pixels: pixels[::-1],
  5: lambda pixels: pixels.swapaxes(0, 1),
  6: lambda pixels: np.rot90(pixels, -1),
  7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
  8: np.rot90,
}


@pytest.mark.parametrize('orientation', range(10))
def test_orientation(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(Image.fromarray(photo(33, 64)), 'JPEG', exif=exif)
  stored = Image.open(io.BytesIO(data))
  pixels = np.asarray(stored)
  turned = TURNED.get(orientation, np.asarray)(pixels)
  assert np.array_equal(read_image(data, 24, 'crop'), read_image(pixels, 24, 'crop'))
  for form in (data, stored):
    got = read_image(form, 24, 'crop', upright=True)
    assert np.array_equal(got, read_image(turned, 24, 'crop'))
  assert stored.size == (64, 33)


def test_transparency_is_kept_when_turned():
  palette = Image.new('P', (32, 40), 1)
  palette.putpalette([0, 0, 0, 10, 20, 30])
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encode(palette, 'PNG', transparency=1, exif=exif)
  assert (read_image(data, 32, 'crop', upright=True) == 255).all()


def test_the_first_frame_of_an_animation():
  frames = [Image.new('RGB', (32, 32), color) for color in ('red', 'blue')]
  for form in ('GIF', 'PNG', 'WEBP', 'TIFF'):
    options = {'lossless': True} if form == 'WEBP' else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(read_image(data, 32, 'crop'), np.asarray(frames[0])), form


def test_pixels_of_unknown_range_are_unreadable():
  for values in (np.float32([[0.5]]), np.int32([[1 << 20]])):
    with pytest.raises(UnreadableImage, match='of unknown range'):
      read_image(encode(Image.fromarray(values), 'TIFF'), 8, 'crop')


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'WEBP', 'BMP'])
def test_truncated_files_are_unreadable(file_format):
  data = encode(Image.fromarray(photo(200, 200)), file_format)
  for part in (0, 10, len(data) // 2, len(data) - 200):
    with pytest.raises(UnreadableImage):
      read_image(data[:part], 32, 'crop')


def test_what_is_no_image_is_unreadable_for_the_same_reason_each_time():
  reasons = set()
  for data in (b'', b'hello', b'hello', bytes(10_000), b'\xff\xd8\xff' + bytes(100)):
    with pytest.raises(UnreadableImage) as caught:
      read_image(data, 32, 'crop')
    reasons.add(str(caught.value))
  assert f'not a {", ".join(images.FORMATS)} image' in reasons and len(reasons) <= 2


def test_huge_images_are_refused_before_decoding():
  bomb = encode(Image.new('1', (10_000, 10_000)), 'PNG')
  with pytest.raises(UnreadableImage, match='too many pixels: 10000x10000'):
    read_image(bomb, 32, 'crop')
  with pytest.raises(UnreadableImage, match='too long and narrow: 40000x1'):
    read_image(encode(Image.new('RGB', (40_000, 1)), 'PNG'), 256, 'crop')
