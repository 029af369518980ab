"""Index of a pair dataset: the split, scene and shard of every pair. Much smaller than the shards."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipelines import shards, storage
from pipelines.shards import Manifest

INDEX = "index.arrow"
TEXTS = ("pair_id", "split", "scene", "shard", "sha256", "normal_sha256", "layout_scene")
INDEX_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in TEXTS), *((name, pa.float64()) for name in shards.TONE_COLUMNS)]
)


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One pair of a dataset.

    Attributes:
        pair_id, split: as in its shard.
        scene: pairs of one scene are in one split.
        shard: name of the shard that holds it.
        sha256: of the pixels of both images, as in the shard.
        normal_sha256: of the normal image's pixels.
        layout_scene: the scene that the layout knows, else empty.
        low_curve, curve_deviation, normal_luma, normal_contrast: as in the shard (`shards.TONE_COLUMNS`).
    """

    pair_id: str
    split: str
    scene: str
    shard: str
    sha256: str
    normal_sha256: str
    layout_scene: str
    low_curve: float
    curve_deviation: float
    normal_luma: float
    normal_contrast: float


def read_index(url: str, manifest: Manifest) -> dict[str, IndexRow]:
    """The pairs of a finished dataset by `pair_id`; pairs of shards that its manifest does not list are omitted."""
    data = storage.read_bytes(storage.join(url, INDEX))
    listed = {entry.name for entry in manifest.shards}
    rows = (IndexRow(**row) for row in pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist())
    return {row.pair_id: row for row in rows if row.shard in listed}


def write_index(url: str, rows: Iterable[IndexRow]) -> None:
    """Writes the index, ordered by `pair_id`."""
    ordered = sorted(rows, key=lambda row: row.pair_id)
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=INDEX_SCHEMA)
    storage.write_bytes(storage.join(url, INDEX), shards.encode_table(table))
