"""Computes the teacher's trajectories once and caches them: pairs -> crops -> teacher actors -> shards.

Three steps of one Ray Data pipeline overlap: CPU tasks decode and crop, actors run the teacher, CPU
tasks write. A row between them is one whole shard. So one actor computes a shard in fixed batches, and its bytes do
not depend on the number of actors.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from pipelines import failures, reporting, shards, storage
from pipelines.cluster import actor_pool, check_room, device_of, rounds, use_gpu
from pipelines.config.jobs import PrecomputeConfig
from pipelines.progress import Progress
from pipelines.reporting import Report
from pipelines.restart_notice import without_restart_notice
from pipelines.shards import Manifest, ShardEntry
from pipelines.trajectories.crops import RecordShard, check_crop, plan_record_shards
from pipelines.trajectories.records import load_records, record_spec, records_table, with_noise
from pipelines.trajectories.teachers import CALLS, TeacherActor
from pipelines.weights import load_hashed_network
from reddit_core.schedule import NoiseSchedule

# Training reads no other split.
SPLIT = "train"
# Less than a teacher actor reserves, so that Ray Data does not fuse decoding with the actors.
DECODE_CPUS = 0.5


@dataclass(frozen=True)
class ShardTask:
    """A missing shard of one stage, and the folder of its cache."""

    teacher_steps: int
    shard: RecordShard
    url: str


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage's cache.

    Attributes:
        teacher_steps: steps of the teacher's grid.
        url: folder of the cache.
        spec: everything that determines its content.
        record_shards: all shards of the cache, in order.
        done: the committed ones, by name.
    """

    teacher_steps: int
    url: str
    spec: Mapping[str, Any]
    record_shards: tuple[RecordShard, ...]
    done: Mapping[str, ShardEntry]

    @property
    def num_records(self) -> int:
        return sum(shard.rows for shard in self.record_shards)

    @property
    def missing(self) -> list[ShardTask]:
        return [
            ShardTask(self.teacher_steps, shard, self.url)
            for shard in self.record_shards
            if shard.name not in self.done
        ]


def plan_stages(config: PrecomputeConfig) -> tuple[list[StagePlan], NoiseSchedule]:
    """The plan of every stage's cache, and the teacher's schedule."""
    manifest = shards.read_manifest(config.pairs, "pairs")
    file, sha256 = load_hashed_network(config.teacher)
    check_crop(config.segment, file.network)
    record_shards = plan_record_shards(manifest, SPLIT, config.segment, config.records_per_shard)
    plans = []
    for teacher_steps in config.stages:
        file.schedule.grid(teacher_steps)  # rejects steps that the schedule does not have
        spec = {
            **record_spec(manifest, SPLIT, file, sha256, teacher_steps, config.segment),
            "records_per_shard": config.records_per_shard,
            "precision": config.precision,
        }
        url = storage.join(config.output, f"{teacher_steps}-{shards.spec_key(spec)}")
        done = shards.committed_shards(url)
        plan = StagePlan(teacher_steps=teacher_steps, url=url, spec=spec, record_shards=record_shards, done=done)
        plans.append(plan)
    return plans, file.schedule


def precompute(config: PrecomputeConfig) -> Report:
    """Computes every missing shard of every stage and writes the manifests; a second run finds nothing to compute.

    Raises:
        ValueError: if the pairs, the teacher or the output cannot be used, Ray has no room for the workers, or
            `verify` finds damage.
        OSError: if storage fails for longer than retries last; a rerun resumes.
    """
    plans, schedule = plan_stages(config)
    if config.verify:
        return verify_caches(plans)
    # The stages of a shard of records follow each other, because they decode the same pairs.
    tasks = sorted((task for plan in plans for task in plan.missing), key=lambda task: task.shard.name)
    started = time.perf_counter()
    if tasks:
        check_room(config.compute)
        storage.check_writable(config.output)
        run_shard_tasks(config, tasks, schedule)
    seconds = time.perf_counter() - started
    rows = [finish_stage(plan) for plan in plans]
    records = sum(task.shard.rows for task in tasks)
    facts = {
        "state": f"computed {len(tasks)} shards" if tasks else "already done: every shard is there",
        "seconds": seconds,
        "records_per_second": records / seconds if tasks else None,
    }
    report = Report(title="Trajectory caches", rows=rows, facts=facts, url=config.output)
    reporting.save(report)
    return report


def run_shard_tasks(config: PrecomputeConfig, tasks: list[ShardTask], schedule: NoiseSchedule) -> None:
    """Computes the shards, a round at a time, and shows the progress."""
    rows = (row for part in rounds(tasks) for row in make_pipeline(config, part, schedule).iter_rows())
    total = sum(task.shard.rows for task in tasks)
    with (
        failures.user_errors("precompute", kept="the shards that were written are kept"),
        without_restart_notice(),
        Progress("precompute", total, "records") as progress,
    ):
        for row in rows:
            progress.advance(int(row["rows"]))


def make_pipeline(config: PrecomputeConfig, tasks: Sequence[ShardTask], schedule: NoiseSchedule) -> ray.data.Dataset:
    """The dataset that decodes, runs the teacher and writes, with a row for each shard."""

    def decode(batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        task = tasks[int(batch["id"][0])]
        rows = np.arange(task.shard.rows)
        records = load_records(config.pairs, task.shard, config.segment, schedule, task.teacher_steps, rows)
        return {"task": [int(batch["id"][0])], "records": [bytes(shards.encode_table(records_table(records)))]}

    def write(batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        task = tasks[int(batch["task"][0])]
        table = pa.ipc.open_file(pa.py_buffer(batch["shard"][0])).read_all()
        shards.write_shard(task.url, task.shard.name, table)
        return {"rows": [task.shard.rows]}

    return (
        ray.data.range(len(tasks), override_num_blocks=len(tasks))
        .map_batches(decode, batch_size=1, num_cpus=DECODE_CPUS)
        .map_batches(
            TeacherActor,
            fn_constructor_args=(config, device_of(config.compute)),
            batch_size=1,
            **actor_pool(config.compute, calls=CALLS, in_flight=CALLS),
        )
        .map_batches(write, batch_size=1)
    )


def finish_stage(plan: StagePlan) -> reporting.Row:
    """Writes the manifest of a stage whose shards are all committed."""
    done = shards.committed_shards(plan.url, plan.done)
    entries = tuple(done[shard.name] for shard in plan.record_shards)
    manifest = Manifest(kind="trajectories", spec=plan.spec, shards=entries)
    shards.write_manifest(plan.url, manifest)
    return {
        "stage": plan.teacher_steps,
        "key": manifest.key,
        "records": manifest.num_rows,
        "shards": len(entries),
        "bytes": sum(entry.bytes for entry in entries),
        "url": plan.url,
    }


def verify_caches(plans: list[StagePlan]) -> Report:
    """Verifies every checksum; raises a ValueError that names damaged or missing shards."""
    rows = []
    for plan in plans:
        if plan.missing:
            raise ValueError(
                f"{plan.url} lacks {len(plan.missing)} of {len(plan.record_shards)} shards; run precompute with the "
                "same settings and without --verify to make them, or give the settings it was made with"
            )
        damaged = shards.verify(plan.url, plan.done.values())
        if damaged:
            raise ValueError(
                f"{plan.url} has {len(damaged)} damaged shards ({', '.join(damaged[:5])}); "
                "delete their .json files and run precompute again"
            )
        if not storage.exists(storage.join(plan.url, shards.MANIFEST)):
            raise ValueError(f"{plan.url} is unfinished: it has no {shards.MANIFEST}; run again without --verify")
        rows.append({"stage": plan.teacher_steps, "shards": len(plan.done), "damaged": 0})
    return Report(title="Checksums", rows=rows)


def plan_precompute(config: PrecomputeConfig) -> Report:
    """The plan (`--dry-run`): records, shards, bytes, teacher evaluations, and a time from a short measurement."""
    plans, schedule = plan_stages(config)
    record_bytes = 18 * config.segment.crop**2
    rate = measure_rate(config, plans[0], schedule)
    rows = [
        {
            "stage": plan.teacher_steps,
            "records": plan.num_records,
            "shards": len(plan.record_shards),
            "missing": len(plan.missing),
            "bytes": plan.num_records * record_bytes,
            "teacher_evaluations": 2 * sum(task.shard.rows for task in plan.missing),
            "hours": sum(task.shard.rows for task in plan.missing) / rate / config.compute.max_workers / 3600,
            "url": plan.url,
        }
        for plan in plans
    ]
    return Report(title="Plan of precompute", rows=rows, facts={"measured_records_per_second_per_worker": rate})


def measure_rate(config: PrecomputeConfig, plan: StagePlan, schedule: NoiseSchedule) -> float:
    """Records per second of one teacher on this machine, from two batches of the first shard."""
    shard = plan.record_shards[0]
    rows = np.arange(min(shard.rows, config.batch_size))
    records = load_records(config.pairs, shard, config.segment, schedule, plan.teacher_steps, rows)
    gpu = use_gpu(config.compute) and torch.cuda.is_available()
    actor = TeacherActor(config, "cuda" if gpu else "cpu")
    batch = with_noise(records)
    actor.evaluate([batch])
    started = time.perf_counter()
    actor.evaluate([batch])
    return len(rows) / (time.perf_counter() - started)
