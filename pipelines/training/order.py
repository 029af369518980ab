"""The order of training records: a pure function of (seed, epoch), read shard by shard.

The records of an epoch are permuted: shards come in random order, `mix_shards` at a time, and the rows of such a
window are shuffled among themselves. All epochs follow each other in one endless stream of positions, and optimizer
step k takes positions `k * batch` to `(k + 1) * batch`. So the step alone determines which records a run has seen,
for any number of workers (as in MosaicML's streaming).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless stream of records over shards with `shard_rows` rows each.

    Raises:
        ValueError: if there is no record at all.
    """

    shard_rows: tuple[int, ...]
    seed: int
    mix_shards: int = 4

    def __post_init__(self) -> None:
        if self.num_records == 0:
            raise ValueError("there are 0 records to train on, but at least one is needed; check the split and cache")

    @property
    def num_records(self) -> int:
        return sum(self.shard_rows)

    def records(self, start: int, stop: int) -> NDArray[np.int64]:
        """(shard, row, epoch) of each position in [start, stop), as [positions, 3]."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.num_records)
            count = min(stop - start, self.num_records - offset)
            pieces.append(self._of_epoch(epoch, offset, offset + count))
            start += count
        return np.concatenate(pieces)

    def _of_epoch(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        shards, ends = window_table(self.shard_rows, self.seed, epoch, self.mix_shards)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        rows = np.concatenate([self._of_window(epoch, window, shards) for window in range(first, last + 1)])
        begin = int(ends[first - 1]) if first else 0
        rows = rows[start - begin : stop - begin]
        return np.concatenate([rows, np.full((len(rows), 1), epoch)], axis=1)

    def _of_window(self, epoch: int, window: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        members = shards[window * self.mix_shards : (window + 1) * self.mix_shards]
        rows = np.concatenate(
            [np.stack([np.full(self.shard_rows[s], s), np.arange(self.shard_rows[s])], axis=1) for s in members]
        )
        return np.random.default_rng((self.seed, epoch, window, 1)).permutation(rows)


@lru_cache(maxsize=8)
def window_table(
    shard_rows: Sequence[int], seed: int, epoch: int, mix_shards: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The epoch's order of shards, and the position within the epoch at which each window ends."""
    shards = np.random.default_rng((seed, epoch, 0)).permutation(len(shard_rows))
    rows = np.asarray(shard_rows)[shards]
    ends = np.cumsum(np.add.reduceat(rows, np.arange(0, len(shards), mix_shards)))
    return shards, ends
