"""The Ray tasks of ingest: survey normal images, or write one shard of pairs.

Every image is decoded once: the survey decodes the normal images, because splits depend on which pairs share one,
and the shard's task decodes the low ones. A checksum ensures that the bytes in a shard are those that were surveyed.
Both tasks write their results before they return them, so that a rerun of a killed job reads them back.
"""

import hashlib
import json
import math
import os
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines import images, shards, storage
from pipelines.pairs.matching import PairSource
from pipelines.progress import Progress
from pipelines.redaction import redact
from reddit_core.brightness import LEAST_LUMA, luma_moments_of_pixels
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.tone import curve_mean, thumbnail_of_pixels, tone_features

READERS = 8
# A Ray task costs about 30 ms, a tenth of decoding one shard: enough tasks to share among the CPUs, and no more.
TASKS_PER_CPU, MOST_PARTS_PER_TASK = 4, 4
# Folders with the results of an unfinished job's tasks, next to its shards.
SURVEY, PIECES = "survey", "pieces"
# Columns of a pair shard that the index keeps too.
OF_PAIRS = ("sha256", *shards.TONE_COLUMNS)
# Digits of moments that do not depend on the machine's order of sums.
DIGITS = 12
CHANGED = "its normal image changed while it was being read; run the job again"
UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError)


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """A pair after its normal image was read.

    Attributes:
        pair_id, low, normal: as in `PairSource`.
        file_bytes, file_crc32: size and CRC-32 of the normal image's file, to detect a change while the job runs.
        normal_sha256: of its pixels (`images.pixel_hash`), so that it is recognized in another encoding.
        width, height: of the upright image, in pixels.
        normal_luma, normal_contrast: mean and standard deviation of its luma, in [0, 1].
        problem: the reason why the normal image cannot be used, else empty.
    """

    pair_id: str
    low: str
    normal: str
    file_bytes: int = 0
    file_crc32: int = 0
    normal_sha256: str = ""
    width: int = 0
    height: int = 0
    normal_luma: float = 0.0
    normal_contrast: float = 0.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class IngestTask:
    """Pairs that one task processes: a part of the survey, or a shard (of one split)."""

    name: str
    members: tuple[Surveyed, ...]
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Darkening:
    """The low-light model that makes the low images of a source that has none."""

    config: DegradeConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The result of writing a shard; `entry` is None if no pair of it was usable.

    Attributes:
        pairs: pair_id to the columns of `OF_PAIRS`, for the pairs in the shard, in order.
        broken: pair_id to the reason, for the others.
    """

    name: str
    entry: shards.ShardEntry | None
    pairs: dict[str, dict[str, Any]]
    broken: dict[str, str]


Result = TypeVar("Result")


def parse_surveyed(rows: list[dict[str, Any]]) -> list[Surveyed]:
    return [Surveyed(**row) for row in rows]


def parse_result(document: dict[str, Any]) -> ShardResult:
    entry = shards.ShardEntry(**document["entry"]) if document["entry"] else None
    return ShardResult(**{**document, "entry": entry})


def fetch(url: str, allow_truncated: bool = False) -> bytes | ValueError:
    """A file's bytes, or the error that makes it unreadable; errors that concern more than this file are raised.

    Args:
        url: of the file, whose name may compose accents otherwise.
        allow_truncated: gives an image without its end as a whole one.
    """
    try:
        found = next(
            (other for other in other_spellings(url) if not storage.exists(url) and storage.exists(other)), url
        )
        data = storage.read_bytes(found)
        return images.repaired(data) if allow_truncated else data
    except UNREADABLE as error:
        return ValueError(f"it cannot be read ({error.strerror or type(error).__name__})")
    except ValueError as error:  # its URL has an unknown scheme or a malformed name
        return ValueError(f"it cannot be read ({redact(str(error))})")


def other_spellings(url: str) -> Sequence[str]:
    """A URL with its accents composed otherwise; none without accents."""
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return [other for form in forms if (other := unicodedata.normalize(form, url)) != url]


def fetch_all(urls: Sequence[str], allow_truncated: bool) -> Iterator[bytes | ValueError]:
    """The files in order; from object storage up to `READERS` are read ahead of the caller."""
    if all(storage.is_local(url) for url in urls):
        # Decoders hold the interpreter lock, so a thread would wait longer for them than for the disk.
        yield from (fetch(url, allow_truncated) for url in urls)
        return
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[bytes | ValueError]] = deque()
        for url in urls:
            ahead.append(pool.submit(fetch, url, allow_truncated))
            if len(ahead) > READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def load_image(data: bytes | ValueError) -> Image.Image:
    if isinstance(data, ValueError):
        raise data
    return images.load(data)


def survey(task: IngestTask, output: str, allow_truncated: bool) -> list[Surveyed]:
    """Reads, decodes and fingerprints the normal images of a task's pairs, and writes the results."""
    files = fetch_all([member.normal for member in task.members], allow_truncated)
    rows = [survey_one(member, data) for member, data in zip(task.members, files, strict=True)]
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    shards.write_shard(storage.join(output, SURVEY), task.name, table)
    return rows


def survey_one(member: Surveyed, data: bytes | ValueError) -> Surveyed:
    try:
        image = load_image(data)
    except ValueError as error:
        return replace(member, problem=f"its normal image is unusable: {error}")
    assert isinstance(data, bytes)
    luma, contrast = luma_moments_of_pixels(images.to_rgb(image))
    return replace(
        member,
        file_bytes=len(data),
        file_crc32=zlib.crc32(data),
        normal_sha256=images.pixel_hash(image),
        width=image.width,
        height=image.height,
        normal_luma=luma,
        normal_contrast=contrast,
    )


def write_pairs(task: IngestTask, output: str, darkening: Darkening | None, allow_truncated: bool) -> ShardResult:
    """Reads the images of one shard's pairs and writes those that are usable."""
    rows: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    lows = fetch_all([member.low for member in task.members], allow_truncated) if darkening is None else iter(())
    normals = fetch_all([member.normal for member in task.members], allow_truncated)
    for member, normal in zip(task.members, normals, strict=True):
        try:
            low = darken(member, normal, darkening) if darkening else next(lows)
            rows.append(pair_row(member, low, normal))
        except ValueError as error:
            broken[member.pair_id] = str(error)
    pairs = {row["pair_id"]: {name: row[name] for name in OF_PAIRS} for row in rows}
    # Written before the shard, so that a committed shard implies these results.
    storage.write_bytes(piece_url(output, task.name), json.dumps({"pairs": pairs, "broken": broken}).encode())
    entry = None
    if rows:
        table = pa.Table.from_pylist(rows, schema=shards.PAIR_SCHEMA)
        entry = shards.write_shard(output, task.name, table, task.split)
    return ShardResult(name=task.name, entry=entry, pairs=pairs, broken=broken)


def darken(member: Surveyed, normal: bytes | ValueError, darkening: Darkening) -> bytes:
    """PNG bytes of a photograph's low-light exposure, seeded by the `pair_id` and so independent of other pairs."""
    name = hashlib.sha256(member.pair_id.encode()).digest()
    rng = np.random.default_rng([darkening.seed, int.from_bytes(name[:8])])
    return images.encode_png(degrade(images.to_rgb(load_image(normal)), darkening.config, rng))


def pair_row(member: Surveyed, low: bytes | ValueError, normal: bytes | ValueError) -> dict[str, Any]:
    """A row of a pair shard.

    Raises:
        ValueError: with the reason, if the low image is unusable or of another size, or the normal one changed.
    """
    if isinstance(normal, ValueError) or (len(normal), zlib.crc32(normal)) != (member.file_bytes, member.file_crc32):
        raise ValueError(CHANGED)
    try:
        image = load_image(low)
    except ValueError as error:
        raise ValueError(f"its low image is unusable: {error}") from None
    width, height = image.size
    if (width, height) != (member.width, member.height):
        raise ValueError(f"its low image is {width}x{height}, but its normal one {member.width}x{member.height}")
    low_sha256 = images.pixel_hash(image)
    if low_sha256 == member.normal_sha256:
        raise ValueError("its low image is the same picture as its normal one; give each pair two exposures")
    digest = hashlib.sha256((low_sha256 + member.normal_sha256).encode()).hexdigest()
    tone = tone_columns(images.to_rgb(image), member.normal_luma, member.normal_contrast)
    assert isinstance(low, bytes)
    stored = {"low": images.as_stored(low), "normal": images.as_stored(normal)}
    values = {**stored, "width": width, "height": height, **tone, "sha256": digest}
    return {"pair_id": member.pair_id, **values}


def tone_columns(low: NDArray[np.uint8], normal_luma: float, normal_contrast: float) -> dict[str, float]:
    """The columns `shards.TONE_COLUMNS` of a pair, from its whole low image and its normal image's moments."""
    luma = thumbnail_of_pixels(low)
    brightness = torch.tensor([normal_luma], dtype=torch.float64).clamp(min=LEAST_LUMA)
    deviation = tone_features(luma, brightness)[0, 2]
    values = (float(curve_mean(luma)), float(deviation), normal_luma, normal_contrast)
    return {name: round(value, DIGITS) for name, value in zip(shards.TONE_COLUMNS, values, strict=True)}


def read_pair(pair: PairSource, darkening: Darkening | None, allow_truncated: bool) -> dict[str, Any]:
    """A row of a pair shard, read in this process; raises a ValueError with the reason if the pair is unusable."""
    normal = fetch(pair.normal, allow_truncated)
    member = survey_one(Surveyed(pair_id=pair.pair_id, low=pair.low, normal=pair.normal), normal)
    low = darken(member, normal, darkening) if darkening else fetch(pair.low, allow_truncated)
    return pair_row(member, low, normal)


def piece_url(output: str, name: str) -> str:
    return storage.join(output, PIECES, f"{name}.json")


def read_result(output: str, name: str) -> ShardResult:
    """The result of a committed shard's task."""
    piece = json.loads(storage.read_bytes(piece_url(output, name)))
    return ShardResult(name=name, entry=shards.read_commit_record(output, name), **piece)


def run_ingest_tasks(
    function: Callable[[IngestTask], Result], parse: Callable[[Any], Result], tasks: Sequence[IngestTask], what: str
) -> Iterator[Result]:
    """Results of a function over tasks, as they are finished; shows the rate and the time left.

    If there are many, one Ray task processes up to four, one after the other. Results travel as JSON, because Ray
    Data would pickle objects; `parse` turns the JSON back into a result.

    Raises:
        OSError: with the message of the first one that the function raised.
    """
    if not tasks:
        return

    def work(row: dict[str, Any]) -> dict[str, Any]:
        members = tuple(Surveyed(**member) for member in row["members"])
        try:
            result = function(IngestTask(name=row["name"], members=members, split=row["split"]))
        except OSError as error:  # raised here, its message would be lost among Ray Data's traces
            return {"num_pairs": len(members), "result": "", "error": f"{type(error).__name__}: {error}"}
        return {"num_pairs": len(members), "result": json.dumps(result, default=asdict), "error": ""}

    num_blocks = min(len(tasks), max(TASKS_PER_CPU * usable_cpus(), math.ceil(len(tasks) / MOST_PARTS_PER_TASK)))
    rows = ray.data.from_items([asdict(task) for task in tasks], override_num_blocks=num_blocks).map(work).iter_rows()
    with Progress(what, sum(len(task.members) for task in tasks), "pairs") as progress:
        for row in rows:
            if row["error"]:
                raise OSError(f"{what} stopped ({row['error']}); run the job again to resume")
            progress.advance(int(row["num_pairs"]))
            yield parse(json.loads(row["result"]))


def usable_cpus() -> int:
    """CPUs that the job can keep busy; a local cluster claims more logical CPUs than the machine has cores."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    claimed = int(sum(node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]))
    return min(claimed, os.cpu_count() or 1) if len(nodes) == 1 else claimed
