"""Color in the kernels of a first layer, and whether its two halves (towers) differ in it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from alexnet_jax.results.figures import (
  DPI,
  FAINT,
  INK,
  drawable,
  kernel_image,
  save_png,
  style_axes,
  text_style,
)

NOISE = 2 / 3  # the mean index of white noise: two of three dimensions of color are not gray
_HALVES = ('half with less color', 'half with more color')
_COLORS = ('#7b8794', '#c2412d')


@dataclasses.dataclass(frozen=True)
class HalvesTest:
  """Mean chroma index of the first and second half of the kernels; p of their difference."""

  first: float
  second: float
  p: float

  @property
  def difference(self) -> float:
    return self.second - self.first


@dataclasses.dataclass(frozen=True)
class ChromaHistory:
  """The first layer of a run at initialization and at its evaluations.

  Attributes:
    name: of the run, the last two parts of its folder.
    net: its title.
    grouped: whether the halves are towers: the net has grouped convolutions.
    kernels: {epoch: (height, width, 3, kernels)} in order, for pixels of 0 to 255.
    tests: {epoch: test of its kernels}.
  """

  name: str
  net: str
  grouped: bool
  kernels: Mapping[float, np.ndarray]
  tests: Mapping[float, HalvesTest]

  @property
  def last(self) -> np.ndarray:
    return self.kernels[max(self.kernels)]


def chroma_index(kernel: np.ndarray) -> np.ndarray:
  """The share of each kernel's energy that is not along the gray axis R = G = B.

  With w(x, c) the weight at position x of channel c and m(x) its mean over c, it is
  sum_xc (w(x, c) - m(x))^2 / sum_xc w(x, c)^2: 0 for a kernel that sees only R + G + B, 1 for one
  to which every gray image is 0, as of opponent colors. Scaling a kernel does not change it. White
  noise has 2/3 in the mean (standard deviation 0.035 for 11x11); noise in kernels can hide a
  difference between two sets of them, but makes none.

  Args:
    kernel: (height, width, 3, kernels).

  Returns:
    float64 (kernels,); 0 for a kernel of zeros.
  """
  kernel = kernel.astype(np.float64)
  energy = np.square(kernel).sum((0, 1, 2))
  across = np.square(kernel - kernel.mean(2, keepdims=True)).sum((0, 1, 2))
  return across / np.where(energy > 0, energy, 1)


def compare_halves(index: np.ndarray, splits: int = 10_000) -> HalvesTest:
  """Compares the halves of the kernels with random splits into halves (permutation test).

  Args:
    index: (kernels,), an even number.
    splits: number of random splits; if there are fewer different ones, all are tried.

  Returns:
    The means, and the two-sided p: the share of splits whose means differ at least as much.
  """
  from scipy.stats import permutation_test  # drawing alone does not need it

  halves = np.split(index, 2)
  tested = permutation_test(
    halves,
    lambda first, second, axis: second.mean(axis) - first.mean(axis),
    vectorized=True,
    n_resamples=splits,
    random_state=np.random.default_rng(0),
  )
  return HalvesTest(halves[0].mean(), halves[1].mean(), tested.pvalue)


def draw_histories(histories: Sequence[ChromaHistory], path: str | os.PathLike) -> None:
  """Draws the mean index by epoch, and of the last epoch its histogram and the kernels.

  Which tower becomes the gray one differs by run (paper section 6.1: "modulo a renumbering of the
  GPUs"), so of each run the half that ends with less color is gray, the other red. Ungrouped nets
  are dashed. Histogram and kernels are of grouped runs if there are any; the kernels of the first.

  Args:
    histories: at least one.
    path: where to put the PNG, 1920 pixels wide.
  """
  from matplotlib.figure import Figure

  shown = [history for history in histories if history.grouped] or list(histories)
  halves = _sorted_halves(shown[0])
  images = [kernel_image(half) for half in halves]
  heights = [4.2, *(10.6 * len(image) / image.shape[1] + 0.4 for image in images)]  # inches
  figure = Figure(figsize=(12, sum(heights)), dpi=DPI, facecolor='white')
  figure.set_layout_engine('constrained', w_pad=0.15, h_pad=0.1)
  axes = figure.subplot_mosaic([['epochs', 'end'], [0, 0], [1, 1]], height_ratios=heights)
  _draw_epochs(axes['epochs'], histories)
  _draw_histogram(axes['end'], shown)
  for place, name in enumerate(_HALVES):
    mean = chroma_index(halves[place]).mean()
    title = drawable(f'{shown[0].name}, {name}, sorted by index: mean {mean:.3f}')
    style = text_style() | {'fontsize': 11.5, 'color': _COLORS[place]}
    axes[place].set_title(title, loc='left', **style)
    axes[place].imshow(images[place], interpolation='nearest')
    axes[place].set_axis_off()
  save_png(figure, path)


def _less_first(history: ChromaHistory) -> list[int]:
  """The places of the halves, first the one that ends with less color."""
  return [0, 1] if history.tests[max(history.tests)].difference >= 0 else [1, 0]


def _sorted_halves(history: ChromaHistory) -> list[np.ndarray]:
  """The last kernels of both halves, less color first, each sorted by index."""
  halves = np.split(history.last, 2, axis=3)
  sorted_halves = [half[..., np.argsort(chroma_index(half))] for half in halves]
  return [sorted_halves[place] for place in _less_first(history)]


def _draw_epochs(axes, histories: Sequence[ChromaHistory]) -> None:
  style_axes(axes)
  axes.axhline(NOISE, color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)))
  axes.text(1, NOISE, ' noise', color=FAINT, va='center', transform=axes.get_yaxis_transform())
  for history in histories:
    epochs = list(history.tests)
    means = np.array([(test.first, test.second) for test in history.tests.values()])
    for half, color in zip(_less_first(history), _COLORS, strict=True):
      line = '-' if history.grouped else (0, (4, 2))
      axes.plot(epochs, means[:, half], color=color, linestyle=line, marker='o', markersize=3)
  axes.set_title('Mean chroma index of each half', loc='left', fontsize=11.5, color=INK)
  dashed = '' if all(history.grouped for history in histories) else '; dashed: nets without towers'
  axes.set_xlabel(f'epoch{dashed}', fontsize=10, color=FAINT)
  axes.set_ylim(0, 1)


def _draw_histogram(axes, histories: Sequence[ChromaHistory]) -> None:
  style_axes(axes)
  halves = [[chroma_index(half) for half in _sorted_halves(history)] for history in histories]
  values = [np.concatenate(half) for half in zip(*halves, strict=True)]
  axes.hist(values, np.linspace(0, 1, 11), color=_COLORS, label=_HALVES)
  axes.legend(frameon=False, labelcolor='linecolor')
  axes.set_title('Kernels by index at the end', loc='left', fontsize=11.5, color=INK)
  axes.set_xlabel('chroma index', fontsize=10, color=FAINT)
