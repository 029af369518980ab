"""Where distillation's records come from: the trajectory cache, or the pairs with the teacher still to be run."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import shards, storage
from pipelines.config.parts import RECORDS_PER_SHARD, SegmentConfig
from pipelines.shards import Manifest, ShardEntry
from pipelines.trajectories.records import (
    Batch,
    RecordShard,
    cached_shard,
    columns_of,
    load_records,
    plan_shards,
    record_noise,
)
from reddit_core.schedule import NoiseSchedule


def find_cache(root: str, stage: int, teacher_sha256: str, segment: SegmentConfig) -> tuple[str, Manifest]:
    """The one cache below `root` that fits; if none does, a ValueError says how the nearest one differs."""
    wanted = {"stage": stage, "teacher_sha256": teacher_sha256, "segment": asdict(segment)}
    # Not all files below the root: of a large cache there are millions.
    folders = [storage.join(root, name) for name in storage.list_folders(root) if name.startswith(f"{stage}-")]
    candidates = [url for url in folders if storage.exists(storage.join(url, shards.MANIFEST))]
    if not candidates:
        raise ValueError(f"{root} holds no cache of stage {stage}; make it with jobs/precompute.py --stages {stage}")
    manifests = {url: shards.read_manifest(url, "trajectories") for url in candidates}
    fitting = [url for url in candidates if all(manifests[url].spec[name] == value for name, value in wanted.items())]
    if len(fitting) > 1:
        raise ValueError(
            f"{root} holds {len(fitting)} caches of stage {stage} that fit ({', '.join(fitting)}); "
            "give each set of pairs its own --output in precompute"
        )
    if not fitting:
        spec = manifests[candidates[-1]].spec
        shards.refuse_mismatch({name: spec[name] for name in wanted}, wanted, candidates[-1])
    return fitting[0], manifests[fitting[0]]


@dataclass(frozen=True)
class CachedRecords:
    """Loads records whose targets were precomputed."""

    url: str
    shards: tuple[ShardEntry, ...]

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, rows: NDArray[np.int64]) -> Batch:
            return columns_of(cached_shard(self.url, self.shards[shard]).take(rows))

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


def online_shards(pairs: str, segment: SegmentConfig) -> tuple[RecordShard, ...]:
    """The plan of a cache with shards of the usual size: all three ways see the same records in the same order."""
    return plan_shards(shards.read_manifest(pairs, "pairs"), "train", segment, RECORDS_PER_SHARD)


def gather(records: NDArray[np.int64], load: Any) -> Batch:
    """Loads (shard, row, epoch) records shard by shard and puts them in the order asked for."""
    result: Batch = {}
    for shard in np.unique(records[:, 0]):
        mask = records[:, 0] == shard
        for name, values in load(int(shard), records[mask, 1]).items():
            column = result.setdefault(name, np.empty((len(records), *values.shape[1:]), dtype=values.dtype))
            column[mask] = values
    return result


def with_noise(batch: Batch) -> Batch:
    """Adds `eps`, regenerated from the records' seeds."""
    return {**batch, "eps": record_noise(batch["seed"], batch["low"].shape[1])}
