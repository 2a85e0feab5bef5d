"""What passes between the writing of a store and the files its images go to."""

import dataclasses

import numpy as np

Record = dict[str, np.ndarray]  # what is known of a part that has been written
Moves = list[tuple[int, int]]  # (row left out, later row that takes its place)


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows `start` to `stop` of a split."""

  split: str
  number: int
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start
