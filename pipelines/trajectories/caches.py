"""Where distillation's records come from: the trajectory cache, or the pairs with the teacher still to be run."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import shards, storage
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import SegmentConfig
from pipelines.pairs.dataset import split_shards
from pipelines.shards import Manifest, ShardEntry, shards_hash
from pipelines.trajectories.crops import Batch, RecordShard, cached_shard
from pipelines.trajectories.records import load_records, to_batch, with_noise
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import UNetFile


def find_cache(config: DistillConfig, stage: int, teacher: UNetFile, teacher_sha256: str) -> tuple[str, Manifest]:
    """The one cache of training pairs below `config.cache` that fits a stage.

    Raises:
        ValueError: if none does, with how the nearest one differs; or several, with how they differ from each other.
    """
    root = config.cache
    wanted = {
        "stage": stage,
        "split": "train",
        "teacher_sha256": teacher_sha256,
        "norm_groups": teacher.unet.config.norm_groups,
        "segment": asdict(config.segment),
    }
    if config.pairs:  # else other pairs might be judged on, and some of them trained on
        wanted["pairs_shards"] = shards_hash(split_shards(shards.read_manifest(config.pairs, "pairs"), "train"))
    # Not all files below the root: of a large cache there are millions.
    folders = [storage.join(root, name) for name in storage.list_folders(root) if name.startswith(f"{stage}-")]
    candidates = [url for url in folders if storage.exists(storage.join(url, shards.MANIFEST))]
    if not candidates:
        raise ValueError(f"{root} holds no cache of stage {stage}; make it with jobs/precompute.py --stages {stage}")
    manifests = {url: shards.read_manifest(url, "trajectories") for url in candidates}
    specs = {url: manifests[url].spec for url in candidates}
    fitting = [url for url in candidates if all(specs[url].get(name) == value for name, value in wanted.items())]
    if len(fitting) > 1:
        first, *others = (specs[url] for url in fitting)
        differing = [name for name in first if any(other[name] != first[name] for other in others)]
        raise ValueError(
            f"{root} holds {len(fitting)} caches of stage {stage} that fit ({', '.join(fitting)}), which differ in "
            f"{', '.join(differing)}; delete those that are not wanted, or give each its own --output in precompute"
        )
    if not fitting:
        found = {url: {name: specs[url].get(name) for name in wanted} for url in candidates}
        nearest = min(candidates, key=lambda url: sum(found[url][name] != wanted[name] for name in wanted))
        shards.require_match(found[nearest], wanted, nearest)
    return fitting[0], manifests[fitting[0]]


@dataclass(frozen=True)
class CachedRecords:
    """Loads records whose targets were precomputed."""

    url: str
    shards: tuple[ShardEntry, ...]

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, rows: NDArray[np.int64]) -> Batch:
            return to_batch(cached_shard(self.url, self.shards[shard]).take(rows))

        return with_noise(gather(records, load))


@dataclass(frozen=True)
class OnlineRecords:
    """Loads the same records without targets, for a teacher that runs in or beside the trainer."""

    pairs: str
    shards: tuple[RecordShard, ...]
    segment: SegmentConfig
    schedule: NoiseSchedule
    stage: int

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, rows: NDArray[np.int64]) -> Batch:
            batch = load_records(self.pairs, self.shards[shard], self.segment, self.schedule, self.stage, rows)
            return {name: values for name, values in batch.items() if name != "pair_id"}

        return with_noise(gather(records, load))


def gather(records: NDArray[np.int64], load: Any) -> Batch:
    """Loads (shard, row, epoch) records shard by shard and puts them in the order asked for."""
    result: Batch = {}
    for shard in np.unique(records[:, 0]):
        mask = records[:, 0] == shard
        for name, values in load(int(shard), records[mask, 1]).items():
            column = result.setdefault(name, np.empty((len(records), *values.shape[1:]), dtype=values.dtype))
            column[mask] = values
    return result
