"""The page on what a net sees: its numbers are those of `predict` and of the net's own outputs."""

import html
import re

import jax
import numpy as np
import pytest
from helpers.trained import digits_net
from PIL import Image

from alexnet_jax.explorer import page
from alexnet_jax.explorer.observation import observe
from alexnet_jax.inference.predictor import Predictor
from alexnet_jax.model.alexnet import AlexNet

NASTY = '<script>alert(1)</script>'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Two photos; a folder that is also a class, and a file, are named as a tag would be."""
  folder = tmp_path_factory.mktemp('photos') / 'bee'
  folder.mkdir()
  random = np.random.default_rng(0)
  files = [folder / '<script>alert(2)<&>.png', folder / 'plain.png']
  for file in files:
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((52, 40), Image.Resampling.BICUBIC).save(file)
  return files


@pytest.fixture(scope='module')
def net():
  return digits_net(classes=(NASTY, 'bee', 'cat', 'dog', 'elk', 'fox', 'gnu'))


@pytest.fixture(scope='module')
def seen(net, photos):
  found, unreadable = observe(net, photos, None)
  assert not unreadable
  return found


@pytest.fixture(scope='module')
def text(net, seen):
  return page.page(net, seen, 'the <b>command')


def visible(part):
  """What a reader sees."""
  return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', part)).split())


def parts(text, section):
  """A section's part of each photo."""
  inside = text.split(f'<section id="{section}">')[1].split('</section>')[0]
  return re.split('<div class="of-photo"', inside)[1:]


def lines_of(part):
  """(class, share) of each line of each list of bars."""
  lists = re.findall('<ol class="bars">(.*?)</ol>', part, re.S)
  return [
    [visible(line).rsplit(' ', 1) for line in re.findall('<li.*?</li>', each, re.S)]
    for each in lists
  ]


def test_guesses_are_those_of_predict(net, photos, text):
  centers, means = Predictor(net)(photos), Predictor(net, views=10)(photos)
  for part, *expected in zip(parts(text, 'guess'), centers, means, strict=True):
    for lines, prediction in zip(lines_of(part), expected, strict=True):
      shares = [f'{share:.2%}' for share in prediction.probabilities]
      assert lines == [list(pair) for pair in zip(prediction.classes, shares, strict=True)]


def test_largest_values_are_those_of_the_nets_outputs(net, photos, text):
  model = AlexNet(net.table)
  for part, file in zip(parts(text, 'layers'), photos, strict=True):
    image = Image.open(file).resize((42, 32), Image.Resampling.BILINEAR).crop((5, 0, 37, 32))
    view = (np.asarray(image, np.float32)[2:30, 2:30] - net.preprocessing.mean)[None]
    _, state = model.apply(net.variables, view * net.preprocessing.scale, mutable=['intermediates'])
    outputs = jax.device_get(state['intermediates']['outputs'])
    shown = dict(re.findall(r'data-layer="(\w+)"(.*?)(?=<div class="layer"|$)', part, re.S))
    assert list(shown) == [row.name for row in net.table]
    for name, layer in shown.items():
      found = dict(re.findall(r'(\d+): (-?[\d.]+)', visible(layer.replace('−', '-'))))
      largest = outputs[name][0].reshape(-1, outputs[name].shape[-1]).max(axis=0)
      assert len(found) == min(8, len(largest))
      values = [largest[int(channel)] for channel in found]
      np.testing.assert_allclose([float(x) for x in found.values()], values, rtol=2e-3, atol=2e-3)
      assert min(values) >= np.sort(largest)[-len(found)] - 1e-3


def test_texts_are_escaped(text):
  assert NASTY not in text and 'alert(2)<' not in text and '<b>command' not in text
  assert NASTY in html.unescape(text) and 'alert(2)<&>' in html.unescape(text)
