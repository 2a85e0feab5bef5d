"""How much color the kernels of a first layer hold, and whether its two halves differ in that."""

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
_COLORS = ('#7b8794', '#c2412d')  # of the half with less color, and of the other


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean chroma index of the first and the second half of the kernels, and their test."""

  first: float
  second: float
  p: float

  @property
  def difference(self) -> float:
    return self.second - self.first


@dataclasses.dataclass(frozen=True)
class Course:
  """The first layer of a run over time.

  Attributes:
    name: of the run, the last two parts of its folder.
    net: its title.
    grouped: whether the halves are towers, which the net keeps apart behind this layer.
    kernels: {epoch: (height, width, 3, kernels)} in order, for pixels in gray levels.
    tests: {epoch: the halves' difference}.
  """

  name: str
  net: str
  grouped: bool
  kernels: Mapping[float, np.ndarray]
  tests: Mapping[float, Difference]

  @property
  def last(self) -> np.ndarray:
    return self.kernels[max(self.kernels)]


def chroma_index(kernel: np.ndarray) -> np.ndarray:
  """The share of each kernel's energy that is not along the gray axis.

  With w(x, c) the weight at place x of channel c = R, G, B and m(x) its mean over c, it is
  sum_xc (w(x, c) - m(x))^2 / sum_xc w(x, c)^2: 0 for a kernel that sees only the sum R + G + B, 1
  for one that no gray image excites, as of opponent colors. A part along the gray axis and one
  across it are orthogonal, so nothing is counted twice and no hue is preferred.

  It does not change with the size of a kernel. White noise has 2/3 in the mean (standard deviation
  0.035 for 11x11), and noise added to a kernel draws its index there. So noise can hide a
  difference between two sets of kernels but makes none, and nothing is taken off the kernels first.

  Args:
    kernel: (height, width, 3, kernels).

  Returns:
    float64 (kernels,); 0 for a kernel of zeros.
  """
  kernel = kernel.astype(np.float64)
  energy = np.square(kernel).sum((0, 1, 2))
  across = np.square(kernel - kernel.mean(2, keepdims=True)).sum((0, 1, 2))
  return across / np.where(energy > 0, energy, 1)


def compare_halves(index: np.ndarray, splits: int, seed: int) -> Difference:
  """Compares the halves of the kernels with random splits into halves (permutation test).

  Args:
    index: (kernels,), an even number.
    splits: random ones; all that there are if that is fewer.
    seed: of the splits.

  Returns:
    The means, and the two-sided p: how rarely a random split has means as far apart.
  """
  from scipy.stats import permutation_test  # drawing alone does not need it

  halves = np.split(index, 2)
  tested = permutation_test(
    halves,
    lambda first, second, axis: second.mean(axis) - first.mean(axis),
    vectorized=True,
    n_resamples=splits,
    random_state=np.random.default_rng(seed),
  )
  return Difference(halves[0].mean(), halves[1].mean(), tested.pvalue)


def draw(courses: Sequence[Course], path: str | os.PathLike) -> None:
  """Draws the index over the epochs, its histogram at the end, and the last kernels by index.

  A net has no first tower (paper section 6.1: "modulo a renumbering of the GPUs"), so of each run
  the half that ends with less color is gray, the other red. Ungrouped nets are dashed. Histogram
  and kernels are of grouped runs if there are any; the kernels are of the first one.

  Args:
    courses: of the runs, at least one.
    path: where to put the PNG, 1920 pixels wide.
  """
  from matplotlib.figure import Figure

  shown = [course for course in courses if course.grouped] or list(courses)
  halves = _sorted_halves(shown[0])
  images = [kernel_image(half) for half in halves]
  heights = [4.2, *(10.6 * len(image) / image.shape[1] + 0.4 for image in images)]  # inches
  figure = Figure(figsize=(12, sum(heights)), dpi=DPI, facecolor='white')
  figure.set_layout_engine('constrained', w_pad=0.15, h_pad=0.1)
  axes = figure.subplot_mosaic([['epochs', 'end'], [0, 0], [1, 1]], height_ratios=heights)
  _draw_epochs(axes['epochs'], courses)
  _draw_histogram(axes['end'], shown)
  for place, name in enumerate(_half_names(shown[0])):
    mean = chroma_index(halves[place]).mean()
    title = drawable(f'{shown[0].name}, {name}, sorted by index: mean {mean:.3f}')
    style = text_style() | {'fontsize': 11.5, 'color': _COLORS[place]}
    axes[place].set_title(title, loc='left', **style)
    axes[place].imshow(images[place], interpolation='nearest')
    axes[place].set_axis_off()
  save_png(figure, path)


def _half_names(course: Course) -> list[str]:
  return [f'{"tower" if course.grouped else "half"} with {word} color' for word in ('less', 'more')]


def _less_first(course: Course) -> list[int]:
  """The places of the halves, first the one that ends with less color."""
  return [0, 1] if course.tests[max(course.tests)].difference >= 0 else [1, 0]


def _sorted_halves(course: Course) -> list[np.ndarray]:
  """The last kernels of both halves, less color first, each sorted by index."""
  halves = np.split(course.last, 2, axis=3)
  sorted_halves = [half[..., np.argsort(chroma_index(half))] for half in halves]
  return [sorted_halves[place] for place in _less_first(course)]


def _draw_epochs(axes, courses: Sequence[Course]) -> None:
  style_axes(axes)
  axes.axhline(NOISE, color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)))
  axes.text(1, NOISE, ' noise', color=FAINT, va='center', transform=axes.get_yaxis_transform())
  for course in courses:
    epochs = list(course.tests)
    means = np.array([(test.first, test.second) for test in course.tests.values()])
    for place, color in zip(_less_first(course), _COLORS, strict=True):
      line = '-' if course.grouped else (0, (4, 2))
      axes.plot(epochs, means[:, place], color=color, linestyle=line, marker='o', markersize=3)
  axes.set_title('Mean chroma index of each half', loc='left', fontsize=11.5, color=INK)
  dashed = '' if all(course.grouped for course in courses) else '; dashed: nets without towers'
  axes.set_xlabel(f'epoch{dashed}', fontsize=10, color=FAINT)
  axes.set_ylim(0, 1)


def _draw_histogram(axes, courses: Sequence[Course]) -> None:
  style_axes(axes)
  halves = [[chroma_index(half) for half in _sorted_halves(course)] for course in courses]
  values = [np.concatenate(half) for half in zip(*halves, strict=True)]
  axes.hist(values, np.linspace(0, 1, 11), color=_COLORS, label=_half_names(courses[0]))
  axes.legend(frameon=False, labelcolor='linecolor')
  axes.set_title('Kernels by index at the end', loc='left', fontsize=11.5, color=INK)
  axes.set_xlabel('chroma index', fontsize=10, color=FAINT)
