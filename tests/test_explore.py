"""The page on what a net sees: its numbers are those of `predict` and of the net's own outputs."""

import html
import re

import jax
import numpy as np
import pytest
from helpers.commands import error_line, run
from helpers.explored import NASTY, nasty_net, page, pixels, write_photos
from helpers.trained import digits_config, digits_net, write_run

from alexnet_jax.explorer import drawing
from alexnet_jax.inference.predictor import Predictor
from alexnet_jax.model import nets
from alexnet_jax.model.alexnet import AlexNet


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return write_photos(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def net():
  return nasty_net()


@pytest.fixture(scope='module')
def text(net, photos):
  return page(net, photos)


def center(net, file):
  view = pixels(file)[2:30, 2:30].astype(np.float32) - net.preprocessing.mean
  return view * net.preprocessing.scale


def outputs_of(net, file):
  """Of every row, for the center."""
  model = AlexNet(net.table)
  _, state = model.apply(net.variables, center(net, file)[None], mutable=['intermediates'])
  outputs = jax.device_get(state['intermediates']['outputs'])
  return {name: values[0] for name, values in outputs.items()}


def visible(part):
  """What a reader sees, with the hyphen for minus."""
  return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', part)).replace('−', '-').split())


def parts(text, section):
  """A section's part of each photo."""
  inside = text.split(f'<section id="{section}">')[1].split('</section>')[0]
  return re.split('<div class="of-photo"', inside)[1:]


def percent(share):
  return f'{share:.2%}'


def test_guesses_are_those_of_predict(net, photos, text):
  centers, means = Predictor(net)(photos), Predictor(net, views=10)(photos)
  for part, *expected in zip(parts(text, 'guess'), centers, means, strict=True):
    lists = re.findall('<ol class="bars">(.*?)</ol>', part, re.S)
    for each, prediction in zip(lists, expected, strict=True):
      lines = re.findall('<li(.*?)><span>(.*?)</span> <b>(.*?)</b></li>', each)
      shares = map(percent, prediction.probabilities)
      assert [(html.unescape(name), share) for _, name, share in lines] == list(
        zip(prediction.classes, shares, strict=True)
      )
      assert all(('class="true"' in words) == (name == 'bee') for words, name, _ in lines)


def test_views_are_where_the_paper_has_them(net, photos, text):
  for part, file in zip(parts(text, 'guess'), photos, strict=True):
    buttons = re.findall('<button.*?data-x="(.*?)" data-y="(.*?)">(.*?)</button>', part, re.S)
    corners = [(0, 0), (4, 0), (2, 2), (0, 4), (4, 4)]
    assert [(int(x), int(y)) for x, y, _ in buttons] == 2 * corners
    for number, (x, y, content) in enumerate(buttons):
      cut = pixels(file)[int(y) : int(y) + 28, int(x) : int(x) + 28]
      cut = cut[:, ::-1] if number >= 5 else cut
      inputs = (cut.astype(np.float32) - net.preprocessing.mean) * net.preprocessing.scale
      logits = AlexNet(net.table).apply(net.variables, inputs[None])
      shares = np.asarray(jax.nn.softmax(logits))[0]
      shown = visible(content)
      assert shown.rsplit(' ', 1)[0].endswith(net.classes[shares.argmax()])
      assert float(shown.rsplit(' ', 1)[1][:-1]) == pytest.approx(100 * shares.max(), abs=0.02)


def test_a_covered_part_is_the_mean_and_its_number_the_nets(net, photos, text):
  for part, file in zip(parts(text, 'occlusion'), photos, strict=True):
    cells = re.findall(
      'data-square="(.*?)" data-share="(.*?)%" data-points="(.*?)" data-then="(.*?)"', part
    )
    assert len(cells) == 81
    assert [cells[number][0] for number in (0, 40, 80)] == ['0 0 5 5', '11 11 6 6', '23 23 5 5']
    whole = np.asarray(jax.nn.softmax(outputs_of(net, file)[net.table[-1].name]))
    label = int(np.argmax(whole))
    for number in (0, 40, 80, 13):
      x, y, width, height = map(int, cells[number][0].split())
      view = center(net, file)
      view[y : y + height, x : x + width] = 0
      logits = AlexNet(net.table).apply(net.variables, view[None])
      share = float(jax.nn.softmax(logits)[0, label])
      guess = int(np.argmax(logits))
      then = f': the net then says {net.classes[guess]}' if guess != label else ''
      assert html.unescape(cells[number][3]) == then
      shown, change = cells[number][1], visible(cells[number][2])
      assert float(shown) == pytest.approx(100 * share, abs=0.02)
      assert float(change) == pytest.approx(100 * (share - whole[label]), abs=0.02)


def test_largest_values_are_those_of_the_nets_outputs(net, photos, text):
  for part, file in zip(parts(text, 'layers'), photos, strict=True):
    outputs = outputs_of(net, file)
    shown = dict(re.findall(r'data-layer="(\w+)"(.*?)(?=<details class="layer"|$)', part, re.S))
    assert list(shown) == [row.name for row in net.table if not row.name.startswith('drop')]
    for name, layer in shown.items():
      largest = outputs[name].reshape(-1, outputs[name].shape[-1]).max(axis=0)
      words = visible(layer)
      names = net.classes if name == net.table[-1].name else range(len(largest))
      found = {
        i: re.search(rf'(?<!\S){re.escape(str(c))}(?:, peak|:) (\S+?)( |,|$)', words)
        for i, c in enumerate(names)
      }
      found = {i: float(match[1]) for i, match in found.items() if match}
      assert len(found) == min(8, len(largest))
      values = [largest[channel] for channel in found]
      np.testing.assert_allclose(list(found.values()), values, rtol=2e-3, atol=2e-3)
      assert min(values) >= np.sort(largest)[-len(found)] - 1e-3


def test_steps_show_a_map_before_and_after(net, photos, text):
  rows = [row.name for row in net.table]
  for part, file in zip(parts(text, 'steps'), photos, strict=True):
    outputs = outputs_of(net, file)
    steps = re.findall(r'data-step="(\w+)"(.*?)(?=<div class="step |$)', part, re.S)
    assert {name for name, _ in steps} == {
      name for name in rows if outputs[name].ndim == 3 and not name.startswith('conv')
    }
    for name, step in steps:
      channel = int(re.search(r'Channel (\d+)', step)[1])
      assert outputs[name][..., channel].max() == pytest.approx(outputs[name].max(), abs=1e-3)
      sides = re.findall(r'(?:before|after): (\w+), .*?<span class="number">(.*?)</span>', step)
      assert [side for side, _ in sides] == [rows[rows.index(name) - 1], name]
      for side, ends in sides:
        values = outputs[side][..., channel]
        found = [float(end) for end in visible(ends).split(' to ')]
        np.testing.assert_allclose(found, [values.min(), values.max()], rtol=2e-3, atol=2e-3)


def test_the_nearest_training_image_is_the_photo_itself(net, text):
  first, second = (
    re.findall(r'<img alt="(.*?)".*?<span class="number">(.*?)</span>', part, re.S)
    for part in parts(text, 'neighbors')
  )
  assert len(first) == len(second) == 6
  assert first[0][0] == net.classes[4] and float(first[0][1]) < 1e-3 < float(first[1][1])


def test_texts_are_escaped(text):
  assert NASTY not in text and 'alert(2)<' not in text and '<b>command' not in text
  assert NASTY in html.unescape(text) and 'alert(2)<&>' in html.unescape(text)


def test_nothing_is_loaded_from_elsewhere(text):
  text, count = re.subn('data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+', 'DATA', text)
  assert count > 50
  addresses = re.findall(r'(?:src|href)="(.*?)"|url\(["\']?(.*?)["\']?\)', text)
  layers = {f'#{row.name}' for row in nasty_net().table if not row.name.startswith('drop')}
  assert {''.join(pair) for pair in addresses} == {'DATA', '#net', *layers}
  assert '@import' not in text and 'http' not in text


def test_the_picture_shows_where_towers_meet():
  boxes = {box.name: box for box in drawing.draw(nets.krizhevsky2012(1000), (224, 224, 3))}
  assert [name for name, box in boxes.items() if box.meets] == ['conv3', 'fc6']
  towers = {name: len(box.spans) for name, box in boxes.items()}
  assert (towers['input'], towers['conv1'], towers['relu5'], towers['fc6']) == (1, 2, 2, 1)
  assert (boxes['conv1'].shape, boxes['conv1'].parameters) == ('55×55×96', '34,944')
  assert len(boxes['conv3'].lines) == 4 and len(boxes['conv2'].lines) == 2


@pytest.mark.slow
def test_command(tmp_path, photos):
  digits = digits_net()
  workdir = write_run(tmp_path / 'run', digits_config(), digits.variables)
  explore = 'alexnet_jax.explore', f'--workdir={workdir}'
  broken = tmp_path / 'broken.png'
  broken.write_bytes(b'')
  done = run(*explore, f'--out={tmp_path / "x.html"}', photos[1], broken)
  assert done.returncode == 0 and 'broken.png cannot be read' in done.stderr, done.stderr
  assert '1 photo,' in done.stdout and 'plain.png' in (tmp_path / 'x.html').read_text()
  assert '<section id="neighbors">' not in (tmp_path / 'x.html').read_text()  # no training images
  assert error_line(run(*explore)) == 'error: no photos: give files or folders'
  assert error_line(run(*explore, broken)) == 'error: none of 1 photos can be read'
  assert '25 photos' in error_line(run(*explore, *[photos[1]] * 25))
  assert 'a.html' in error_line(run(*explore, '--out=/dev/null/a.html', photos[1]))
