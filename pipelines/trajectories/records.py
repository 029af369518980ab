"""Trajectory records: a crop of a pair, its noise and its noise levels; the same wherever the teacher runs.

Every draw is seeded by (cache seed, pair, crop, draw, teacher steps), so it does not depend on how the work is divided.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import shards
from pipelines.config.parts import SegmentConfig
from pipelines.pairs.dataset import split_shards
from pipelines.shards import Manifest, shards_hash
from pipelines.trajectories.crops import Batch, RecordShard, derive_seed, load_crops, locate_record
from reddit_core.schedule import NoiseSchedule
from reddit_core.trajectory import Levels, draw_nodes, draw_segment_levels
from reddit_core.weights import NetworkFile


def record_noise(seeds: NDArray[np.uint64], crop: int) -> NDArray[np.float32]:
    """`eps` of records, [n, 3, crop, crop]; regenerated bit for bit from their seeds."""
    generators = (np.random.Generator(np.random.Philox(key=int(seed))) for seed in seeds)
    return np.stack([rng.standard_normal((3, crop, crop), dtype=np.float32) for rng in generators])


def with_noise(records: Batch) -> Batch:
    """Adds `eps`, regenerated from the records' seeds."""
    return {**records, "eps": record_noise(records["seed"], records["low"].shape[1])}


def draw_levels(
    crops: Mapping[str, NDArray[Any]],
    shard: RecordShard,
    segment: SegmentConfig,
    schedule: NoiseSchedule,
    teacher_steps: int,
    rows: NDArray[np.int64],
) -> Batch:
    """`seed` [n], `nodes` [n, 3] and `levels` (a_t, a_u, a_s) [n, 3] of records on the grid of `teacher_steps`."""
    seeds, nodes, levels = [], [], []
    for pair_id, row in zip(crops["pair_id"], rows, strict=True):
        _, crop, draw = locate_record(int(shard.start + row), segment)
        seed = derive_seed(segment.seed, pair_id, crop, draw, teacher_steps)
        group_seed = seed
        if segment.shared_t > 1:  # consecutive records share their nodes
            group_seed = derive_seed(segment.seed, shard.name, teacher_steps, row // segment.shared_t)
        generator = torch.Generator().manual_seed(group_seed >> 1)
        node = draw_nodes(1, teacher_steps, generator)
        generator.manual_seed(seed >> 1)
        level = draw_segment_levels(schedule, node, teacher_steps, segment.levels, generator)
        seeds.append(seed)
        nodes.append(node[0].numpy())
        levels.append(torch.cat(level).numpy())
    return {
        "seed": np.array(seeds, dtype=np.uint64),
        "nodes": np.stack(nodes).astype(np.int32),
        "levels": np.stack(levels),
    }


def load_records(
    pairs_url: str,
    shard: RecordShard,
    segment: SegmentConfig,
    schedule: NoiseSchedule,
    teacher_steps: int,
    rows: NDArray[np.int64],
) -> Batch:
    """All columns of records but the teacher's targets and the noise, for `rows` of a record shard."""
    crops = load_crops(pairs_url, shard, segment, rows)
    return {**crops, **draw_levels(crops, shard, segment, schedule, teacher_steps, rows)}


def to_levels(records: Mapping[str, NDArray[Any]], device: torch.device | str) -> Levels:
    """The (a_t, a_u, a_s) column of records as float64 tensors."""
    return Levels(*torch.tensor(records["levels"], device=device).unbind(dim=1))


def to_batch(table: pa.Table) -> Batch:
    """A table's columns as arrays of their full shape; all but `pair_id`, of which no step makes use."""
    return {name: as_array(table.column(name)) for name in table.column_names if name != "pair_id"}


def as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if isinstance(array, pa.FixedShapeTensorArray):
        return np.asarray(array.to_numpy_ndarray())
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten().to_numpy()).reshape(len(array), array.type.list_size)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def records_table(records: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Records without targets as a table, its columns in the order of the trajectory schema."""
    columns = {
        name: shards.tensor_column(values) if values.ndim == 4 else pa.array(list(values))
        for name, values in records.items()
    }
    schema = shards.trajectory_schema(records["low"].shape[1])
    inputs = pa.schema([field for field in schema if field.name in columns])
    return pa.table({field.name: columns[field.name] for field in inputs}).cast(inputs)


def record_spec(
    pairs: Manifest, split: str, teacher: NetworkFile, teacher_sha256: str, teacher_steps: int, segment: SegmentConfig
) -> dict[str, Any]:
    """Everything that determines the records of one stage and their targets; its hash is the cache key."""
    return {
        "pairs_key": pairs.key,
        "pairs_shards": shards_hash(split_shards(pairs, split)),
        "split": split,
        "teacher_sha256": teacher_sha256,
        **teacher.network.config.key_entries(),
        "schedule": asdict(teacher.schedule),
        "stage": teacher_steps,
        "segment": asdict(segment),
        **shards.schema_spec("trajectories"),
    }
