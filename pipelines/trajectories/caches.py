"""Loads the records of a distillation: from a trajectory cache, or from the pairs, without targets."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import shards, storage
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import SegmentConfig
from pipelines.pairs.dataset import split_shards
from pipelines.shards import Manifest, OtherVersionError, ShardEntry, shards_hash
from pipelines.trajectories.crops import Batch, RecordShard, cached_shard, gather
from pipelines.trajectories.records import load_records, to_batch, with_noise
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile


def find_cache(
    config: DistillConfig, teacher_steps: int, teacher: NetworkFile, teacher_sha256: str
) -> tuple[str, Manifest]:
    """The one cache of training pairs below `config.cache` that fits a stage, and its manifest.

    Raises:
        ValueError: if none does, with how the nearest one differs; or several, with how they differ from each other.
    """
    wanted = wanted_spec(config, teacher_steps, teacher, teacher_sha256)
    manifests = list_caches(config.cache, teacher_steps)
    fitting = {
        url: manifest
        for url, manifest in manifests.items()
        if all(manifest.spec.get(name) == value for name, value in wanted.items())
    }
    if len(fitting) > 1:
        first, *others = (manifest.spec for manifest in fitting.values())
        differing = [name for name in first if any(other[name] != first[name] for other in others)]
        raise ValueError(
            f"{config.cache} holds {len(fitting)} caches of stage {teacher_steps} that fit ({', '.join(fitting)}), "
            f"which differ in {', '.join(differing)}; delete those that are not wanted, or give each its own --output "
            "in precompute"
        )
    if not fitting:
        found = {url: {name: manifest.spec.get(name) for name in wanted} for url, manifest in manifests.items()}
        nearest = min(found, key=lambda url: sum(found[url][name] != wanted[name] for name in wanted))
        shards.require_match(found[nearest], wanted, nearest)
    return next(iter(fitting.items()))


def wanted_spec(config: DistillConfig, teacher_steps: int, teacher: NetworkFile, teacher_sha256: str) -> dict[str, Any]:
    """The part of a cache's spec that a distillation prescribes."""
    spec = {
        "stage": teacher_steps,
        "split": "train",
        "teacher_sha256": teacher_sha256,
        **teacher.network.config.key_entries(),
        "segment": asdict(config.segment),
    }
    if config.pairs:  # or validation could use images of other pairs that were trained on
        manifest = shards.read_manifest(config.pairs, "pairs")
        spec["pairs_shards"] = shards_hash(split_shards(manifest, "train"))
    return spec


def list_caches(root: str, teacher_steps: int) -> dict[str, Manifest]:
    """The finished caches of a stage below a folder, by URL; those of another schema version do not count.

    Raises:
        ValueError: if there is none, or none but of another schema version.
    """
    # Not by listing all files below the root: a large cache has millions.
    folders = [storage.join(root, name) for name in storage.list_folders(root) if name.startswith(f"{teacher_steps}-")]
    manifests: dict[str, Manifest] = {}
    unreadable: OtherVersionError | None = None
    for url in folders:
        if not storage.exists(storage.join(url, shards.MANIFEST)):
            continue
        try:
            manifests[url] = shards.read_manifest(url, "trajectories")
        except OtherVersionError as error:
            unreadable = error
    if not manifests and unreadable:
        raise unreadable
    if not manifests:
        raise ValueError(
            f"{root} holds no cache of stage {teacher_steps}; make it with jobs/precompute.py --stages {teacher_steps}"
        )
    return manifests


@dataclass(frozen=True)
class CachedRecords:
    """Loads records with precomputed targets."""

    url: str
    shards: tuple[ShardEntry, ...]

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, _epoch: int, rows: NDArray[np.int64]) -> Batch:
            return to_batch(cached_shard(self.url, self.shards[shard]).take(rows))

        return with_noise(gather(records, load))


@dataclass(frozen=True)
class OnlineRecords:
    """Loads the same records without targets, for a teacher that runs during training."""

    pairs: str
    shards: tuple[RecordShard, ...]
    segment: SegmentConfig
    schedule: NoiseSchedule
    teacher_steps: int

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, _epoch: int, rows: NDArray[np.int64]) -> Batch:
            return load_records(self.pairs, self.shards[shard], self.segment, self.schedule, self.teacher_steps, rows)

        return with_noise(gather(records, load))
