"""What a trajectory record is: a crop of a pair, its noise and its noise levels; the same wherever the teacher runs.

Every draw derives from (cache seed, pair, crop, draw) and the stage, never from how work is divided.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from PIL import Image

from pipelines import shards
from pipelines.config.parts import SegmentConfig, require
from pipelines.pairs.ingest import decode_pair, split_shards
from pipelines.shards import Manifest, ShardEntry
from reddit_core.schedule import NoiseSchedule
from reddit_core.trajectory import Levels, draw_nodes, draw_segment_levels
from reddit_core.unet import UNet
from reddit_core.weights import UNetFile

Batch = dict[str, NDArray[Any]]
DecodedPair = tuple[NDArray[np.uint8], NDArray[np.uint8]]

# What a process keeps of decoded pairs for the crops that follow: a shard's of LOL, or a few of a large camera's.
DECODED_BYTES = 2**27


@dataclass(frozen=True, kw_only=True)
class RecordShard:
    """A fixed list of records: the virtual rows [start, stop) of one pair shard, `crops * draws` to a pair."""

    name: str
    pairs: ShardEntry
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def plan_shards(
    manifest: Manifest, split: str, segment: SegmentConfig, records_per_shard: int
) -> tuple[RecordShard, ...]:
    """The record shards of a split, a pure function of manifest and config, in order."""

    def parts(entry: ShardEntry) -> Iterator[RecordShard]:
        total = entry.rows * segment.crops * segment.draws
        for part, start in enumerate(range(0, total, records_per_shard)):
            stop = min(start + records_per_shard, total)
            yield RecordShard(name=f"{entry.name}-{part:04d}", pairs=entry, start=start, stop=stop)

    return tuple(shard for entry in split_shards(manifest, split) for shard in parts(entry))


def seed_of(*parts: object) -> int:
    """64 bits that depend on every part and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def record_noise(seeds: NDArray[np.uint64], crop: int) -> NDArray[np.float32]:
    """`eps` of records, [n, 3, crop, crop]; regenerated bit for bit from their seeds."""
    generators = (np.random.Generator(np.random.Philox(key=int(seed))) for seed in seeds)
    return np.stack([rng.standard_normal((3, crop, crop), dtype=np.float32) for rng in generators])


def with_noise(records: Batch) -> Batch:
    """Adds `eps`, regenerated from the records' seeds."""
    return {**records, "eps": record_noise(records["seed"], records["low"].shape[1])}


def to_images(crops: NDArray[np.uint8], device: torch.device | str = "cpu") -> torch.Tensor:
    """[n, h, w, 3] uint8 as [n, 3, h, w] float32 in [-1, 1]."""
    return torch.tensor(crops, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def cut(image: NDArray[np.uint8], y: int, x: int, size: int, flip: bool) -> NDArray[np.uint8]:
    """A `size` x `size` crop, mirrored left to right if `flip`; images that are too small are mirrored outwards."""
    height, width = image.shape[:2]
    if height < size or width < size:
        margins = ((0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0))
        image = np.pad(image, margins, mode="symmetric")
    piece = image[y : y + size, x : x + size]
    return piece[:, ::-1] if flip else piece


def draw_crop(shape: tuple[int, ...], size: int, *seed_parts: object) -> tuple[int, int, bool]:
    """(y, x, flip) of a random crop, from the seed parts alone."""
    rng = np.random.default_rng(seed_of(*seed_parts))
    y = int(rng.integers(max(shape[0] - size, 0) + 1))
    x = int(rng.integers(max(shape[1] - size, 0) + 1))
    return y, x, bool(rng.integers(2))


@lru_cache(maxsize=4)
def cached_shard(url: str, entry: ShardEntry) -> pa.Table:
    """A verified shard, kept by the worker process that works its way through it."""
    return shards.read_shard(url, entry)


@cached(LRUCache[Any, DecodedPair](DECODED_BYTES, getsizeof=lambda pair: pair[0].nbytes + pair[1].nbytes))
def decoded_pair(url: str, entry: ShardEntry, row: int) -> DecodedPair:
    """The two images of a pair, kept for the crops that follow."""
    return decode_pair(cached_shard(url, entry).slice(row, 1).to_pylist()[0])


def draw_scale(min_scale: float, *seed_parts: object) -> float:
    """Log-uniform in [min_scale, 1], from the seed parts alone."""
    return float(min_scale ** np.random.default_rng(seed_of("scale", *seed_parts)).random())


def reduce(image: NDArray[np.uint8], scale: float, least: int) -> NDArray[np.uint8]:
    """An image at a scale in (0, 1], by averaging over areas; only so far that no side is below `least`."""
    height, width = image.shape[:2]
    scale = max(scale, min(1.0, least / min(height, width)))
    if scale == 1:
        return image
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def check_crop(segment: SegmentConfig, unet: UNet) -> None:
    """Refuses crops that the teacher cannot be run on."""
    multiple = unet.config.size_multiple
    require(
        segment.crop % multiple == 0,
        f"segment.crop is {segment.crop}, but must be a multiple of the teacher's {multiple}; use "
        f"{-(-segment.crop // multiple) * multiple}",
    )


def place_of(record: int, segment: SegmentConfig) -> tuple[int, int, int]:
    """(pair, crop, draw) of a virtual row of a pair shard."""
    pair, rest = divmod(record, segment.crops * segment.draws)
    return pair, *divmod(rest, segment.draws)


def load_crops(url: str, shard: RecordShard, segment: SegmentConfig, rows: NDArray[np.int64]) -> Batch:
    """The crops of a record shard's `rows` (0 is its first record): images uint8, [n, crop, crop, 3]."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("pair_id", "scale", "crop_y", "crop_x", "flip", "draw", "low", "normal")
    }
    pair_ids = cached_shard(url, shard.pairs).column("pair_id")
    for record in shard.start + rows:
        pair, crop, draw = place_of(int(record), segment)
        pair_id = pair_ids[pair].as_py()
        scale = draw_scale(segment.min_scale, segment.seed, pair_id, crop)
        low, normal = (reduce(image, scale, segment.crop) for image in decoded_pair(url, shard.pairs, pair))
        y, x, flip = draw_crop(low.shape, segment.crop, segment.seed, pair_id, crop)
        images = (cut(image, y, x, segment.crop, flip) for image in (low, normal))
        values = (pair_id, scale, y, x, flip, draw, *images)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return {
        name: np.stack(values) if name in ("low", "normal") else np.array(values) for name, values in columns.items()
    }


def draw_levels(
    crops: Mapping[str, NDArray[Any]],
    shard: RecordShard,
    segment: SegmentConfig,
    schedule: NoiseSchedule,
    stage: int,
    rows: NDArray[np.int64],
) -> Batch:
    """`seed` [n], `nodes` [n, 3] and `levels` (a_t, a_u, a_s) [n, 3] of records on the `stage`-step grid."""
    seeds, nodes, levels = [], [], []
    for pair_id, row in zip(crops["pair_id"], rows, strict=True):
        _, crop, draw = place_of(int(shard.start + row), segment)
        seed = seed_of(segment.seed, pair_id, crop, draw, stage)
        group = seed if segment.shared_t == 1 else seed_of(segment.seed, shard.name, stage, row // segment.shared_t)
        generator = torch.Generator().manual_seed(group >> 1)
        node = draw_nodes(1, stage, generator)
        generator.manual_seed(seed >> 1)
        level = draw_segment_levels(schedule, node, stage, segment.levels, generator)
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
    stage: int,
    rows: NDArray[np.int64],
) -> Batch:
    """All that a record holds before the teacher has seen it, for `rows` of a record shard."""
    crops = load_crops(pairs_url, shard, segment, rows)
    return {**crops, **draw_levels(crops, shard, segment, schedule, stage, rows)}


def levels_of(records: Mapping[str, NDArray[Any]], device: torch.device | str) -> Levels:
    """The (a_t, a_u, a_s) column of records as float64 tensors."""
    return Levels(*torch.tensor(records["levels"], device=device).unbind(dim=1))


def columns_of(table: pa.Table) -> Batch:
    """A table's numeric columns as arrays; tensors and fixed-size lists get their shape back."""
    return {name: as_array(table.column(name)) for name in table.column_names if name != "pair_id"}


def as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if isinstance(array, pa.FixedShapeTensorArray):
        return np.asarray(array.to_numpy_ndarray())
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten().to_numpy()).reshape(len(array), array.type.list_size)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def records_table(records: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Records before the teacher, as a table in the order of the trajectory schema."""
    columns = {
        name: shards.tensor_column(values) if values.ndim == 4 else pa.array(list(values))
        for name, values in records.items()
    }
    schema = shards.trajectory_schema(records["low"].shape[1])
    inputs = pa.schema([field for field in schema if field.name in columns])
    return pa.table({field.name: columns[field.name] for field in inputs}).cast(inputs)


def shards_hash(entries: Sequence[ShardEntry]) -> str:
    """What the content of shards is known by."""
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()


def record_spec(
    pairs: Manifest, split: str, teacher: UNetFile, teacher_sha256: str, stage: int, segment: SegmentConfig
) -> dict[str, Any]:
    """Everything that determines the records of one stage and their targets; its hash is the cache key."""
    return {
        "pairs_key": pairs.key,
        "pairs_shards": shards_hash(split_shards(pairs, split)),
        "split": split,
        "teacher_sha256": teacher_sha256,
        "norm_groups": teacher.unet.config.norm_groups,  # a released file does not say
        "schedule": asdict(teacher.schedule),
        "stage": stage,
        "segment": asdict(segment),
    }
