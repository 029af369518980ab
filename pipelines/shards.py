"""Shards and manifests: the formats on disk (docs/design.md, "Formats"). No Ray here.

A dataset is a folder: `manifest.json`, and `shards/NAME.arrow` with a commit record `shards/NAME.json`
beside each. A shard without its commit record was never finished and is written again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage

# One version for each kind of dataset: raised when its columns, or what they mean, change.
SCHEMA_VERSIONS = {"pairs": 2, "trajectories": 2}
# The job that writes each kind.
MAKERS = {"pairs": "jobs/ingest.py", "trajectories": "jobs/precompute.py"}
MANIFEST = "manifest.json"
# Commit records are small files whose reading is mostly waiting, so many are read at a time.
READERS = 32
RECORDS_PER_READ = 64

# Of whole images, luma in [0, 1]: mean of the low image's tone curve, deviation of that curve at the gain that leads to
# the normal image's brightness (`reddit_core.tone`), and mean and standard deviation of the normal image.
TONE_COLUMNS = ("low_curve", "curve_deviation", "normal_luma", "normal_contrast")

PAIR_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("low", pa.binary()),
        ("normal", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float64()) for name in TONE_COLUMNS),
        ("sha256", pa.string()),
    ]
)

# What a teacher adds to a record (`teachers.target_columns`): all that the student's targets need at any refinement
# weight.
TARGET_COLUMNS = ("x_u", "x_target_0")


def trajectory_schema(crop: int) -> pa.Schema:
    """The columns of a trajectory shard of `crop` x `crop` pixels; images are [H, W, 3] uint8, tensors [3, H, W]."""
    image = pa.fixed_shape_tensor(pa.uint8(), (crop, crop, 3))
    tensor = pa.fixed_shape_tensor(pa.float16(), (3, crop, crop))
    return pa.schema(
        [
            ("pair_id", pa.string()),
            ("scale", pa.float64()),
            ("crop_y", pa.int32()),
            ("crop_x", pa.int32()),
            ("orientation", pa.int8()),
            ("draw", pa.int32()),
            ("gain", pa.float32()),
            ("seed", pa.uint64()),
            ("nodes", pa.list_(pa.int32(), 3)),
            ("levels", pa.list_(pa.float64(), 3)),
            ("low", image),
            ("normal", image),
            *((name, tensor) for name in TARGET_COLUMNS),
        ]
    )


def tensor_column(values: NDArray[Any]) -> pa.FixedShapeTensorArray:
    """[rows, ...] as an Arrow fixed-shape tensor column."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One committed shard. `split` is empty for trajectory shards."""

    name: str
    rows: int
    bytes: int
    sha256: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a finished dataset or cache.

    Attributes:
        kind: `pairs` or `trajectories`.
        spec: everything that determines the content; its hash is the `key`.
        shards: committed shards in order.
        facts: figures that do not determine the content (counts, splits, timings).
    """

    kind: str
    spec: Mapping[str, Any]
    shards: tuple[ShardEntry, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return spec_key(self.spec)

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class OtherVersionError(ValueError):
    """A dataset whose schema version this code does not read."""


def schema_spec(kind: str) -> dict[str, int]:
    """The schema version as a part of a spec, so that shards of two versions never share a folder.

    Version 1 is not named, and so the keys of datasets of version 1 stay as they are.
    """
    version = SCHEMA_VERSIONS[kind]
    return {} if version == 1 else {"schema_version": version}


def spec_key(spec: Mapping[str, Any]) -> str:
    """The cache key: the first 16 hex digits of the SHA-256 of the spec's canonical JSON."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def shards_hash(entries: Sequence[ShardEntry]) -> str:
    """SHA-256 of the checksums of some shards, in order: the same only for the same contents."""
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()


def require_match(found: Mapping[str, Any], wanted: Mapping[str, Any], url: str) -> None:
    """Compares a spec or settings on record with what is asked for.

    Raises:
        ValueError: if they differ, with every field that does.
    """
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if differing:
        details = "; ".join(f"{name} is {found.get(name)!r}, asked for {wanted.get(name)!r}" for name in differing)
        raise ValueError(f"{url} does not match: {details}; use another output, or the settings it was made with")


def write_manifest(url: str, manifest: Manifest) -> None:
    """Writes a manifest with a line for each shard; there may be a million."""
    version = SCHEMA_VERSIONS[manifest.kind]
    head = {**asdict(replace(manifest, shards=())), "key": manifest.key, "schema_version": version}
    del head["shards"]
    rows = ",\n".join(json.dumps(vars(shard), sort_keys=True) for shard in manifest.shards)
    text = json.dumps(head, indent=1, sort_keys=True).removesuffix("\n}") + f',\n "shards": [\n{rows}\n]\n}}'
    storage.write_bytes(storage.join(url, MANIFEST), text.encode())


def read_manifest(url: str, kind: str) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        ValueError: if there is none, it is damaged or of another kind, or its key is wrong.
        OtherVersionError: if it is of another schema version.
    """
    try:
        document = json.loads(storage.read_bytes(storage.join(url, MANIFEST)))
    except FileNotFoundError:
        message = f"{url} holds no finished {kind} ({MANIFEST} is missing); make it with {MAKERS[kind]}"
        raise ValueError(message) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{url}/{MANIFEST} is damaged ({error}); make it again") from None
    try:
        return parse_manifest(document, url, kind)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{url}/{MANIFEST} lacks or misnames a field ({error}); make it again") from None


def parse_manifest(document: Any, url: str, kind: str) -> Manifest:
    if document["kind"] != kind:
        raise ValueError(f"{url} holds {document['kind']}, but {kind} are needed; give their URL")
    found, wanted = document["schema_version"], SCHEMA_VERSIONS[kind]
    if found != wanted:
        again = f"make them again with {MAKERS[kind]} and another --output"
        remedy = f"update this code, or {again}" if found > wanted else again
        raise OtherVersionError(
            f"{url} holds {kind} of schema {found}, but {kind} of schema {wanted} are needed; {remedy}"
        )
    manifest = Manifest(
        kind=kind,
        spec=document["spec"],
        shards=tuple(ShardEntry(**entry) for entry in document["shards"]),
        facts=document["facts"],
    )
    if manifest.key != document["key"]:
        raise ValueError(f"{url}/{MANIFEST} was altered: its key is not the hash of its spec; make it again")
    return manifest


def encode_table(table: pa.Table) -> memoryview:
    """A table as the bytes of an Arrow IPC file; the same bytes for the same table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


def write_shard(url: str, name: str, table: pa.Table, split: str = "") -> ShardEntry:
    """Writes a shard and then its commit record, both atomically."""
    data = encode_table(table)
    entry = ShardEntry(
        name=name, rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), split=split
    )
    storage.write_bytes(storage.join(url, "shards", f"{name}.arrow"), data)
    storage.write_bytes(storage.join(url, "shards", f"{name}.json"), json.dumps(asdict(entry)).encode())
    return entry


def committed_shards(url: str, known: Mapping[str, ShardEntry] | None = None) -> dict[str, ShardEntry]:
    """The finished shards below `url` by name, whether or not a manifest lists them.

    Args:
        known: entries whose commit records need not be read again.
    """
    known = known or {}
    files = set(storage.list_files(storage.join(url, "shards")))
    records = sorted(name.removesuffix(".json") for name in files if name.endswith(".json"))
    finished = [name for name in records if f"{name}.arrow" in files]
    unread = [name for name in finished if name not in known]
    parts = [unread[start : start + RECORDS_PER_READ] for start in range(0, len(unread), RECORDS_PER_READ)]
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda names: [read_commit_record(url, name) for name in names], parts)
        entries = {entry.name: entry for part in read for entry in part}
    return {name: known[name] if name in known else entries[name] for name in finished}


def read_commit_record(url: str, name: str) -> ShardEntry:
    return ShardEntry(**json.loads(storage.read_bytes(storage.join(url, "shards", f"{name}.json"))))


def shard_url(url: str, entry: ShardEntry) -> str:
    return storage.join(url, "shards", f"{entry.name}.arrow")


def read_shard(url: str, entry: ShardEntry) -> pa.Table:
    """A shard's table; its checksum is verified first.

    Raises:
        ValueError: if the bytes differ from those that were committed.
        FileNotFoundError: if there is no such shard.
    """
    data = storage.read_bytes(shard_url(url, entry))
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ValueError(
            f"{shard_url(url, entry)} is damaged: its SHA-256 is not the committed {entry.sha256[:12]}...; "
            "delete its .json beside it and run the job that wrote it again"
        )
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def verify(url: str, shards: Iterable[ShardEntry]) -> list[str]:
    """The names of shards that are missing, or whose bytes differ from those that were committed."""
    damaged = []
    for entry in shards:
        try:
            read_shard(url, entry)
        except (ValueError, FileNotFoundError):
            damaged.append(entry.name)
    return damaged
