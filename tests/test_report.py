"""Reports: every number again from the files, verdicts right, pages that stand alone."""

import base64
import csv
import html
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import get_config, run
from PIL import Image
from scipy import stats

from alexnet_jax import config as configs
from alexnet_jax import config_files
from alexnet_jax.data import preparation
from alexnet_jax.errors import UserError
from alexnet_jax.results import scores
from alexnet_jax.sweep import comparison, report_files
from alexnet_jax.sweep.finished import FinishedRun, find_finished_runs


@pytest.fixture(scope='module')
def labels():
  """Of the validation digits."""
  return np.array(preparation.prepare_store(digits().data).eval.labels)


def digits(*names, **fields):
  config = get_config('digits')
  config.epochs = 6.0
  for path, value in fields.items():
    config.update_from_flattened_dict({path.replace('__', '.'): value})
  return config_files.apply_ablations(config, names)


def write_run(workdir, config, label, error, *, pace=1.0, predictions=True, seed=0):
  """A finished run as training leaves it, with about the error asked for."""
  config.seed = seed
  random = np.random.default_rng([seed, round(1e6 * error)])
  workdir.mkdir(parents=True)
  (workdir / 'config.json').write_text(json.dumps(configs.to_json(config)))
  logits = random.normal(0, 1, (len(label), 10))
  wrong = random.random(len(label)) < error
  answer = np.where(wrong, (label + random.integers(1, 4, len(label))) % 10, label)
  logits[np.arange(len(label)), answer] += random.uniform(2.5, 8, len(label))
  probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
  if predictions:
    np.savez(workdir / 'predictions-last-1.npz', label=label, probabilities=probabilities)
  results = {'eval/top1_error': error, 'eval/top5_error': error / 2}
  results |= {'hardware': '1 x <img src=x>', 'python': '3.11.7', 'versions': {'jax': '0.10.2'}}
  (workdir / 'results.json').write_text(json.dumps(results))
  with open(workdir / 'metrics.jsonl', 'w') as file:
    for step in range(10, 121, 10):
      training = 0.05 + 0.9 * math.exp(-step / (30 * pace))
      line = {'step': step, 'epoch': step / 20, 'train/top1_error': training}
      if step % 20 == 0:
        line['eval/top1_error'] = error + 0.8 * math.exp(-step / (25 * pace))
      file.write(json.dumps(line) + '\n')


MEASURES = 'mean deviation difference pairs'.split()
MEASURES += [f'over_{what}_{end}' for what in ('seeds', 'images') for end in ('low', 'high')]
ERRORS = {'baseline': 0.06, 'no_lrn': 0.10, 'non_overlapping_pool': 0.065, 'tanh': 0.12}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, labels):
  """Four rows of three seeds, and the report on them."""
  folder = tmp_path_factory.mktemp('sweep')
  for name, error in ERRORS.items():
    for seed in range(3):
      config = digits(*[name] * (name != 'baseline'))
      pace = 4.0 if name == 'tanh' else 1.0
      workdir = folder / name / f'seed{seed}'
      write_run(workdir, config, labels, error + 0.004 * seed, seed=seed, pace=pace)
  (folder / '<i>unfinished').mkdir()
  shutil.copy(folder / 'tanh' / 'seed0' / 'config.json', folder / '<i>unfinished')
  text = report_files.write_report([folder], folder, 'the <b>command')
  assert (folder / 'report.md').read_text() == text
  return folder


def rows_of(folder):
  return comparison.compare_runs(find_finished_runs([folder])[0])


def wrong_again(workdir, k):
  """By sorting, which the report does not do."""
  with np.load(workdir / 'predictions-last-1.npz', allow_pickle=False) as file:
    best = np.argsort(-file['probabilities'], axis=1, kind='stable')[:, :k]
    return (best != file['label'][:, None]).all(1)


def read_csv(folder):
  with open(folder / 'report.csv', newline='') as file:
    return {line['row']: line for line in csv.DictReader(file)}


@pytest.mark.parametrize('metric, k', [('top1_error', 1), ('top5_error', 5)])
def test_every_number_again_from_the_saved_predictions(folder, metric, k):
  lines = read_csv(folder)
  assert set(lines) == set(ERRORS)
  wrong = {
    name: np.array([wrong_again(folder / name / f'seed{seed}', k) for seed in range(3)])
    for name in ERRORS
  }
  base = wrong['baseline']
  drawn = np.random.default_rng(1).integers(0, base.shape[1], (4000, base.shape[1]))
  for name, line in lines.items():
    found = {key: float(line[f'{metric}_{key}'] or 'nan') for key in MEASURES}
    errors = wrong[name].mean(1)
    expected = {'mean': errors.mean(), 'deviation': errors.std(ddof=1)}
    assert line['seeds'] == '0 1 2'
    assert line['reference'] == ('' if name == 'baseline' else 'baseline')
    if name != 'baseline':
      test = stats.ttest_rel(errors, base.mean(1))
      expected['over_seeds_low'], expected['over_seeds_high'] = test.confidence_interval(0.95)
      gain = np.mean(wrong[name].astype(int) - base, axis=0)
      ends = np.quantile(gain[drawn].mean(1), (0.025, 0.975))
      drawn_again = found['over_images_low'], found['over_images_high']
      assert drawn_again == pytest.approx(ends, abs=0.004)
      expected |= {'difference': gain.mean(), 'pairs': 3}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert len(expected) == 6 or np.isnan(found['difference'])


def test_a_metric_is_added_by_its_name_alone(folder, monkeypatch):
  monkeypatch.setitem(scores.TOP_K, 'top3_error', 3)
  rows = rows_of(folder)
  wrong = [wrong_again(folder / 'tanh' / f'seed{seed}', 3).mean() for seed in range(3)]
  (tanh,) = (row for row in rows if row.name == 'tanh')
  assert tanh.statistics['top3_error'].mean == pytest.approx(np.mean(wrong))
  assert '| top-5 error, % | top-3 error, % |' in report_files.markdown(rows, [])


def test_intervals_of_runs_that_never_differ():
  assert comparison.student_interval([0.0, 0.0, 0.0]) == (0.0, 0.0)
  wilson = 3.841459 / 39.841459
  assert comparison.bootstrap_mean(np.zeros(36)) == pytest.approx((-wilson, wilson))


def shown(text):
  """What a reader sees of a page, without the images."""
  text = re.sub('<style.*?</style>', '', text, flags=re.S)
  return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', text)).split())


def test_markdown_and_page_say_the_same_as_csv(folder):
  text, page_text = (folder / 'report.md').read_text(), shown((folder / 'report.html').read_text())
  for name, line in read_csv(folder).items():
    row = next(row for row in text.splitlines() if row.startswith(f'| {name} |'))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    mean, deviation = (100 * float(line[f'top1_error_{what}']) for what in ('mean', 'deviation'))
    assert cells[1:3] == ['3', f'{mean:.2f} ± {deviation:.2f}'] and cells[-1] == line['verdict']
    if name != 'baseline':
      assert cells[5] == f'{100 * float(line["top1_error_difference"]):+.2f}'
    assert ' '.join(filter(None, cells)) in page_text
  assert f'not finished: `{folder}/<i>unfinished`' in text
  assert '+1.37 / +1.15' in text and '+0.39 / +0.30' in text
  assert '| 3.0, 3.0, 3.0 |' in text and '| -, -, - |' in text


# What is compared with what.


def test_rows_are_named_by_what_they_change_and_compared_with_the_same_without_it(tmp_path, labels):
  fast = {'optimizer__learning_rate': 0.1}
  for folder, config in {
    'a': digits(),
    'b': digits('no_lrn', 'no_random_crop'),
    'c': digits(**fast),
    'd': digits('no_lrn', **fast),
    'e': digits('no_augmentation'),
    'f': digits('no_weight_decay'),
    'g': digits(optimizer__momentum=0.8),
    'h': digits('no_lrn'),
  }.items():
    write_run(tmp_path / folder, config, labels, 0.1)
  assert {row.name: row.reference for row in rows_of(tmp_path)} == {
    'baseline': '',
    'no_lrn': 'baseline',
    'no_lrn+no_random_crop': 'baseline',
    'no_weight_decay': 'baseline',
    'no_random_crop': 'baseline',  # digits have no mirrors and no noise: it is the same
    'optimizer.momentum=0.8': 'baseline',
    'optimizer.learning_rate=0.1': 'baseline',
    'no_lrn, optimizer.learning_rate=0.1': 'optimizer.learning_rate=0.1',
  }


def test_the_base_is_the_row_that_the_other_is_an_ablation_of(tmp_path, labels):
  write_run(tmp_path / 'a', digits('no_weight_decay'), labels, 0.1)
  write_run(tmp_path / 'b', digits(), labels, 0.1)
  rows = rows_of(tmp_path)
  assert [row.name for row in rows] == ['baseline', 'no_weight_decay']
  assert [row.runs[0].workdir.name for row in rows] == ['b', 'a']


def test_only_what_both_have_is_compared(tmp_path, labels):
  """Seeds of both, predictions of both, and the same images."""
  for seed in (0, 1, 2):
    write_run(tmp_path / f'base{seed}', digits(), labels, 0.1, seed=seed)
  for seed in (1, 2, 5):
    write_run(tmp_path / f'tanh{seed}', digits('tanh'), labels, 0.2, seed=seed)
  write_run(tmp_path / 'bare', digits('no_lrn'), labels, 0.3, predictions=False)
  write_run(tmp_path / 'other', digits(data__validation_fraction=0.1), labels[:179], 0.2)
  rows = {row.runs[-1].workdir.name: row for row in rows_of(tmp_path)}
  tanh, bare, other = rows['tanh5'], rows['bare'], rows['other']
  a, b, c, d = (
    wrong_again(tmp_path / name, 1).mean() for name in ('base1', 'base2', 'tanh1', 'tanh2')
  )
  assert tanh.top1.pairs == 2 and len(tanh.runs) == 3
  assert tanh.top1.difference == pytest.approx((c - a + d - b) / 2)
  assert bare.top1.mean == 0.3  # of results.json
  assert bare.top1.over_seeds is bare.top1.over_images is None
  assert bare.verdict == 'inconclusive: one seed and no predictions'
  assert other.reference == '' and other.top1.difference is None


@pytest.mark.parametrize(
  'published, seeds, images, expected',
  [
    (0.0137, (0.01, 0.02), None, 'confirmed: worse (3 seeds)'),
    (0.0137, (-0.001, 0.02), (0.001, 0.02), 'inconclusive: the interval contains 0 (3 seeds)'),
    (0.0137, (-0.02, -0.001), None, 'contradicted: better (3 seeds)'),
    (-0.0137, (-0.02, -0.001), None, 'confirmed: better (3 seeds)'),
    (-0.0004, (-0.02, 0.01), None, 'consistent: no difference was published, the interval'),
    (-0.0004, (0.01, 0.02), None, 'contradicted: worse, but no difference was published (3'),
    (0.0137, None, (0.01, 0.02), 'confirmed: worse (one seed: the interval is over images alone)'),
    (0.0137, None, None, 'inconclusive: one seed'),
  ],
)
def test_verdicts(published, seeds, images, expected):
  error = comparison.Statistics(published=published, pairs=3, over_seeds=seeds, over_images=images)
  assert comparison.judge(error).startswith(expected)


def test_epochs_to_a_training_error(tmp_path):
  """20 steps an epoch; lines of unequal length count by their steps."""
  lines = [(1, 1.0), (20, 0.9), (30, 0.2), (40, 0.4), (60, 0.2)]
  metrics = [{'step': s, 'epoch': s / 20, 'train/top1_error': e} for s, e in lines]
  metrics.insert(3, {'step': 30, 'eval/top1_error': 0.0})
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, metrics)) + '\n')
  run = FinishedRun(tmp_path, {}, {}, None)
  assert dict(run.training_errors) == pytest.approx(
    {1.0: (1 + 19 * 0.9) / 20, 1.5: (19 * 0.9 + 10 * 0.2) / 29, 2.0: 0.3, 3.0: 0.2}
  )
  assert [run.epochs_to(error) for error in (0.31, 0.25, 0.1)] == [2.0, 3.0, None]
  assert run.validation_errors.tolist() == [[1.5, 0.0]]


def test_the_page_needs_no_other_file_and_shows_names_as_they_are(folder):
  text = (folder / 'report.html').read_text()
  links = re.findall(r'(?:src|href|srcset|action)="([^#"]*)"', text)
  assert len(links) == 3
  for link in links:
    head, _, content = link.partition(',')
    assert head == 'data:image/png;base64'
    Image.open(io.BytesIO(base64.b64decode(content))).verify()
  assert not re.search(r'<(script|link|iframe|object)|@import|url\(', text)
  for part in ('12 runs in 4 rows', 'made by the <b>command', '1 x <img src=x>', 'jax 0.10.2'):
    assert part in shown(text)
  assert f'not finished: {folder}/<i>unfinished' in shown(text)
  for tag in ('section', 'details', 'table', 'figure', 'td', 'th', 'tr', 'p', 'i'):
    assert len(re.findall(f'<{tag}[ >]', text)) == text.count(f'</{tag}>') > 0


def test_damaged_and_absent_runs_are_one_line(tmp_path, labels):
  with pytest.raises(UserError, match='is not a folder'):
    find_finished_runs([tmp_path / 'none'])
  with pytest.raises(UserError, match='holds no finished run'):
    find_finished_runs([tmp_path])
  write_run(tmp_path / 'a', digits(), labels, 0.1)
  path = tmp_path / 'a' / 'predictions-last-1.npz'
  good = path.read_bytes()
  np.savez(path, label=labels, probabilities=np.array([{}], object))  # a pickle
  for content in (path.read_bytes(), good[:1000], b'', b'PK'):
    path.write_bytes(content)
    with pytest.raises(UserError, match='predictions-last-1.npz is damaged') as error:
      find_finished_runs([tmp_path])
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_the_command(folder, tmp_path):
  done = run('alexnet_jax.report', folder, f'--out={tmp_path}')
  text = (folder / 'report.md').read_text()
  assert done.returncode == 0 and done.stdout == f'{text}\n{tmp_path}/report.html\n'
  assert (tmp_path / 'report.csv').read_bytes() == (folder / 'report.csv').read_bytes()
  for words in ([], ['/no/such/folder'], ['--uot=x', '.'], [str(folder), '--out=/dev/null/x']):
    done = run('alexnet_jax.report', *words)
    assert done.returncode == 2 and done.stdout == ''
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ')


def test_a_run_without_predictions_has_the_errors_of_its_final_views():
  results = {'ten_views/top1_error': 0.407, 'ten_views/top5_error': 0.182}
  config = configs.to_json(get_config('imagenet'))
  rows = comparison.compare_runs([FinishedRun(Path('r'), config, results, None)])
  assert '| baseline | 1 | 40.70 | 18.20 |' in report_files.markdown(rows, [])
