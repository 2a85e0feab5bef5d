"""A page of `explore`: two photos, a made-up net, and names that a careless page would run."""

import numpy as np
from PIL import Image

from alexnet_jax.explorer import explorer_page
from alexnet_jax.explorer.observation import TrainingImages, observe
from helpers.trained import digits_net

NASTY = '<script>alert(1)</script>'


def nasty_net():
  return digits_net(classes=(NASTY, 'bee', 'cat', 'dog', 'elk', 'fox', 'gnu'))


def write_photos(folder):
  """Two photos in a folder `bee`; one is named as a tag would be."""
  (folder / 'bee').mkdir()
  random = np.random.default_rng(0)
  files = [folder / 'bee' / '<script>alert(2)<&>.png', folder / 'bee' / 'plain.png']
  for file in files:
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((52, 40), Image.Resampling.BICUBIC).save(file)
  return files


def pixels(file):
  """As the net resizes a photo of 52 x 40 pixels."""
  image = Image.open(file).resize((42, 32), Image.Resampling.BILINEAR)
  return np.asarray(image.crop((5, 0, 37, 32)))


def page(net, photos):
  """The page as HTML, with nine training images; the first photo is one of them."""
  images = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
  images[4] = pixels(photos[0])
  training = TrainingImages(images, [net.classes[number % 7] for number in range(9)])
  found, unreadable = observe(net, photos, training)
  assert not unreadable
  return explorer_page.render(net, found, len(images), 'the <b>command')
