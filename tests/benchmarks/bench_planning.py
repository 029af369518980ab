"""Planning and manifest handling with a million shards: seconds and peak memory of what one driver does alone.

Every line is a process of its own, so that its peak is its own; the first one only imports. Commit records are real
files, so there are fewer of them; the last column says what one takes.

    python tests/benchmarks/bench_planning.py [--shards 1000000] [--files 100000]
"""

import hashlib
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import cloudpickle
import tyro

from pipelines import cluster, shards
from pipelines.config.parts import RECORDS_PER_SHARD, SegmentConfig
from pipelines.shards import Manifest, ShardEntry
from pipelines.training.order import Order
from pipelines.trajectories.caches import CachedRecords
from pipelines.trajectories.crops import plan_record_shards
from pipelines.trajectories.precompute import StagePlan

SEGMENT = SegmentConfig(crops=4)
PAIRS_PER_SHARD = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    shards: int = 1_000_000
    """Shards of the manifests and plans."""
    files: int = 100_000
    """Shards whose commit records lie in a folder."""


def entry_of(number: int) -> ShardEntry:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    name = f"train-{number:07d}-{sha256[:12]}"
    return ShardEntry(name=name, rows=PAIRS_PER_SHARD, bytes=40_000_000, sha256=sha256, split="train")


def only_imports(folder: str, number: int) -> str:
    return ""


def write_manifest(folder: str, number: int) -> str:
    entries = tuple(entry_of(index) for index in range(number))
    shards.write_manifest(folder, Manifest(kind="pairs", spec={"source": "s3://bucket"}, shards=entries))
    return f"{Path(folder, shards.MANIFEST).stat().st_size / 1e6:.0f} MB"


def read_manifest(folder: str, number: int) -> str:
    return f"{shards.read_manifest(folder, 'pairs').num_rows:.2e} pairs"


def plan_of(folder: str) -> StagePlan:
    manifest = shards.read_manifest(folder, "pairs")
    record_shards = plan_record_shards(manifest, "train", SEGMENT, RECORDS_PER_SHARD)
    return StagePlan(teacher_steps=16, url="s3://bucket/cache/16-0", spec={}, record_shards=record_shards, done={})


def plan(folder: str, number: int) -> str:
    """All of what precompute's driver holds before the first task: manifest, plan of shards, list of tasks."""
    tasks = plan_of(folder).missing
    part = tasks[: cluster.ROUND]
    return f"{len(tasks)} tasks; a round's {len(part)} are {len(cloudpickle.dumps(part)) / 1e6:.1f} MB for each worker"


def order(folder: str, number: int) -> str:
    """The order of a cache's records and the closure that loads them, as distill's driver and workers hold them."""
    entries = shards.read_manifest(folder, "pairs").shards
    records = Order(shard_rows=tuple(entry.rows for entry in entries), seed=0)
    records.records(0, 128)
    started = time.perf_counter()
    for step in range(10):
        records.records(128 * step, 128 * step + 128)
    seconds = (time.perf_counter() - started) / 10
    size = len(cloudpickle.dumps(CachedRecords("s3://bucket/cache", entries))) / 1e6
    return f"{1e3 * seconds:.1f} ms for a span of 128 records; loader {size:.0f} MB for each worker"


def read_commit_records(folder: str, number: int) -> str:
    started = time.perf_counter()
    found = shards.committed_shards(folder)
    return f"{1e6 * (time.perf_counter() - started) / len(found):.0f} us a shard"


def list_commit_records(folder: str, number: int) -> str:
    known = {entry.name: entry for entry in map(entry_of, range(number))}
    started = time.perf_counter()
    found = shards.committed_shards(folder, known)
    return f"{1e6 * (time.perf_counter() - started) / len(found):.0f} us a shard"


def make_commit_records(folder: Path, number: int) -> None:
    (folder / "shards").mkdir()
    for entry in map(entry_of, range(number)):
        (folder / "shards" / f"{entry.name}.arrow").touch()
        (folder / "shards" / f"{entry.name}.json").write_text(json.dumps(asdict(entry)))


def measured(function: Callable[[str, int], str], folder: str, number: int) -> tuple[float, float, str]:
    """Seconds, this process's peak in MiB, and what the function says."""
    started = time.perf_counter()
    said = function(folder, number)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, said


def report(function: Callable[[str, int], str], folder: Path, number: int) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, peak, said = pool.submit(measured, function, str(folder), number).result()
    print(f"{function.__name__:20} {number:8} shards {seconds:7.1f} s {peak:7.0f} MiB  {said}", flush=True)


def main(settings: Settings) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for function in (only_imports, write_manifest, read_manifest, plan, order):
            report(function, folder, settings.shards)
        for number in (settings.files // 10, settings.files):
            part = folder / str(number)
            part.mkdir()
            make_commit_records(part, number)
            for function in (read_commit_records, list_commit_records):
                report(function, part, number)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(tyro.cli(Settings))
