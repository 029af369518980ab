"""Training crops: the list of all crops of a pair dataset, and how they are cut.

Every draw is seeded by (seed, pair, number of the crop), so it does not depend on how the work is divided.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from PIL import Image

from pipelines import shards
from pipelines.config.parts import SegmentConfig, check_brightness_jitter, require
from pipelines.pairs.dataset import decode_pair, split_shards
from pipelines.shards import Manifest, ShardEntry
from reddit_core.brightness import LEAST_LUMA
from reddit_core.networks import Network
from reddit_core.tone import tone_gain

Batch = dict[str, NDArray[Any]]
"""Columns of records by name; the first dimension of each counts the records."""
DecodedPair = tuple[NDArray[np.uint8], NDArray[np.uint8]]

# Size of a process's cache of decoded pairs: a whole shard of LOL, or a few pairs of a high-resolution camera.
DECODED_BYTES = 2**27
ORIENTATIONS = 8
MOST_LUMA = 0.8


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


def plan_record_shards(
    manifest: Manifest, split: str, segment: SegmentConfig, records_per_shard: int
) -> tuple[RecordShard, ...]:
    """The record shards of a split, a pure function of manifest and config, in order."""

    def parts(entry: ShardEntry) -> Iterator[RecordShard]:
        total = entry.rows * segment.crops * segment.draws
        for part, start in enumerate(range(0, total, records_per_shard)):
            stop = min(start + records_per_shard, total)
            yield RecordShard(name=f"{entry.name}-{part:04d}", pairs=entry, start=start, stop=stop)

    return tuple(shard for entry in split_shards(manifest, split) for shard in parts(entry))


def locate_record(record: int, segment: SegmentConfig) -> tuple[int, int, int]:
    """(pair, crop, draw) of a virtual row of a pair shard."""
    pair, rest = divmod(record, segment.crops * segment.draws)
    return pair, *divmod(rest, segment.draws)


def derive_seed(*parts: object) -> int:
    """A 64-bit seed that is a pure function of all parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


@lru_cache(maxsize=4)
def cached_shard(url: str, entry: ShardEntry) -> pa.Table:
    """A verified shard; cached, because a worker process loads its rows in many parts."""
    return shards.read_shard(url, entry)


@cached(LRUCache[Any, DecodedPair](DECODED_BYTES, getsizeof=lambda pair: pair[0].nbytes + pair[1].nbytes))
def decoded_pair(url: str, entry: ShardEntry, row: int) -> DecodedPair:
    """The two images of a pair; cached for its other crops."""
    return decode_pair(cached_shard(url, entry).slice(row, 1).to_pylist()[0])


def load_crops(url: str, shard: RecordShard, segment: SegmentConfig, rows: NDArray[np.int64]) -> Batch:
    """The crops of a record shard's `rows` (0 is its first record), with all columns of `load_crop`, each [n, ...]."""
    crops = [load_crop(url, shard, segment, int(row)) for row in rows]
    return {name: np.stack([crop[name] for crop in crops]) for name in crops[0]}


def load_crop(url: str, shard: RecordShard, segment: SegmentConfig, row: int) -> dict[str, Any]:
    """The columns of one crop: its pair, where it was cut, and both images, uint8 [crop, crop, 3].

    `gain` is the exposure gain of the pair's whole images, whatever part of them the crop shows. With
    `segment.brightness_jitter`, the normal image is made brighter or darker, and the gain with it.

    A column that is added here reaches every batch, of teachers and of students; `trajectory_schema` lists those that
    a cache keeps.
    """
    pair, crop, draw = locate_record(shard.start + row, segment)
    table = cached_shard(url, shard.pairs)
    pair_id, curve, normal_luma = (table.column(name)[pair].as_py() for name in ("pair_id", "low_curve", "normal_luma"))
    scale = draw_scale(segment.min_scale, segment.seed, pair_id, crop)
    low, normal = (reduce(image, scale, segment.crop) for image in decoded_pair(url, shard.pairs, pair))
    y, x, orientation = draw_crop(low.shape, segment.crop, segment.seed, pair_id, crop)
    factor = draw_brightness_factor(segment.brightness_jitter, normal_luma, segment.seed, pair_id, crop)
    return {
        "pair_id": pair_id,
        "scale": scale,
        "crop_y": y,
        "crop_x": x,
        "orientation": np.int8(orientation),
        "draw": draw,
        "gain": np.float32(tone_gain(normal_luma * factor, curve)),
        "low": cut(low, y, x, segment.crop, orientation),
        "normal": scale_values(cut(normal, y, x, segment.crop, orientation), factor),
    }


def gather(records: NDArray[np.int64], load: Callable[[int, int, NDArray[np.int64]], Batch]) -> Batch:
    """Loads records given as (shard, row, epoch), [n, 3], in the order asked for.

    Args:
        load: loads the rows of one shard and epoch; called as `load(shard, epoch, rows)`. All its columns are kept but
            `pair_id`, of which no step makes use.
    """
    result: Batch = {}
    for shard, epoch in np.unique(records[:, [0, 2]], axis=0):
        mask = (records[:, 0] == shard) & (records[:, 2] == epoch)
        for name, values in load(int(shard), int(epoch), records[mask, 1]).items():
            if name == "pair_id":
                continue
            column = result.setdefault(name, np.empty((len(records), *values.shape[1:]), dtype=values.dtype))
            column[mask] = values
    return result


def draw_scale(min_scale: float, *seed_parts: object) -> float:
    """A scale that is log-uniform in [min_scale, 1], a pure function of the seed parts."""
    return float(min_scale ** np.random.default_rng(derive_seed("scale", *seed_parts)).random())


def reduce(image: NDArray[np.uint8], scale: float, least: int) -> NDArray[np.uint8]:
    """An image at a scale in (0, 1], by averaging over areas; the scale is raised so that no side is below `least`."""
    height, width = image.shape[:2]
    scale = max(scale, min(1.0, least / min(height, width)))
    if scale == 1:
        return image
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def draw_crop(shape: tuple[int, ...], size: int, *seed_parts: object) -> tuple[int, int, int]:
    """(y, x, orientation) of a uniformly drawn crop, a pure function of the seed parts."""
    rng = np.random.default_rng(derive_seed(*seed_parts))
    y = int(rng.integers(max(shape[0] - size, 0) + 1))
    x = int(rng.integers(max(shape[1] - size, 0) + 1))
    return y, x, int(rng.integers(ORIENTATIONS))


def draw_brightness_factor(jitter: float, normal_luma: float, *seed_parts: object) -> float:
    """A factor that is log-uniform in [exp(-jitter), exp(jitter)], a pure function of the seed parts.

    It makes no image brighter than `MOST_LUMA`, where much of it would be clipped.
    """
    factor = np.exp(jitter * (2 * np.random.default_rng(derive_seed("brightness", *seed_parts)).random() - 1))
    return float(min(factor, max(1.0, MOST_LUMA / max(normal_luma, LEAST_LUMA))))


def scale_values(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """An image times a factor, rounded and clipped."""
    if factor == 1:
        return image
    scaled: NDArray[np.uint8] = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)[image]
    return scaled


def cut(image: NDArray[np.uint8], y: int, x: int, size: int, orientation: int) -> NDArray[np.uint8]:
    """A `size` x `size` crop, in one of eight orientations; images that are too small are mirrored outwards.

    Bit 0 of the orientation mirrors left to right, bit 1 top to bottom, and bit 2 then swaps rows and columns.
    """
    height, width = image.shape[:2]
    if height < size or width < size:
        margins = ((0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0))
        image = np.pad(image, margins, mode="symmetric")
    piece = image[y : y + size, x : x + size]
    piece = piece[:: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]
    return piece.swapaxes(0, 1) if orientation & 4 else piece


def check_crop(segment: SegmentConfig, network: Network) -> None:
    """Raises a ValueError for crops whose side is no multiple of the network's `size_multiple`, or a brightness that
    the network is not told."""
    check_brightness_jitter(segment.brightness_jitter, network.config)
    multiple = network.config.size_multiple
    require(
        segment.crop % multiple == 0,
        f"segment.crop is {segment.crop}, but must be a multiple of the teacher's {multiple}; use "
        f"{-(-segment.crop // multiple) * multiple}",
    )
