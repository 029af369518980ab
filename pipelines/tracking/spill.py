"""Metrics and files that could not be delivered before the process ended, stored under `<output>/unsent/` for later
delivery.

One batch is a folder `unsent/ID`: `index.json` with the metrics, and one PNG or file for each image or artifact.
"""

import io
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage

FOLDER, INDEX = "unsent", "index.json"


class Point(NamedTuple):
    """One value of a metric; the same point sent twice is stored once."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class File(NamedTuple):
    """An image to show under `name` (`pixels`, uint8 [H, W, 3]), or a file for the artifact folder `name` (`path`)."""

    name: str
    step: int = 0
    pixels: NDArray[np.uint8] | None = None
    path: Path = Path()
    timestamp_ms: int = 0


class SpilledBatch(NamedTuple):
    """Metrics and files that are stored in the folder `url`."""

    url: str
    points: Sequence[Point]
    files: Sequence[File]


def save(output: str, points: Sequence[Point], files: Sequence[File]) -> None:
    """Stores metrics and files below a run's output, the index last, so that an incomplete batch is never read.

    Raises:
        OSError: if a file or the storage cannot be read or written.
    """
    url = storage.join(output, FOLDER, uuid.uuid4().hex)
    entries: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        is_image = file.pixels is not None
        stored = f"{number}.png" if is_image else f"{number}/{file.path.name}"
        storage.write_bytes(storage.join(url, stored), encode(file))
        entry = {"name": file.name, "step": file.step, "file": stored, "image": is_image, "time": file.timestamp_ms}
        entries.append(entry)
    # As text, since JSON has no infinities and no NaN, which metrics may have.
    values = [[point.name, repr(point.value), point.timestamp_ms, point.step] for point in points]
    storage.write_bytes(storage.join(url, INDEX), json.dumps({"points": values, "files": entries}).encode())


def encode(file: File) -> bytes:
    """The bytes of a file, or of an image as PNG."""
    if file.pixels is None:
        return file.path.read_bytes()
    data = io.BytesIO()
    Image.fromarray(file.pixels).save(data, "PNG")
    return data.getvalue()


def load(output: str, scratch: Path) -> Iterator[SpilledBatch]:
    """All complete batches below a run's output; their files are copied to the folder `scratch`."""
    folder = storage.join(output, FOLDER)
    for name in storage.list_files(folder):
        if storage.base_name(name) != INDEX:
            continue
        url = storage.join(folder, name.removesuffix(f"/{INDEX}"))
        index = json.loads(storage.read_bytes(storage.join(url, INDEX)))
        points = [Point(name, float(value), timestamp, step) for name, value, timestamp, step in index["points"]]
        yield SpilledBatch(url, points, [load_file(url, entry, scratch) for entry in index["files"]])


def load_file(url: str, entry: dict[str, Any], scratch: Path) -> File:
    """The file of one entry of a batch's index: an image in memory, anything else copied below `scratch`."""
    data = storage.read_bytes(storage.join(url, entry["file"]))
    if entry["image"]:
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return File(entry["name"], entry["step"], pixels, timestamp_ms=entry["time"])
    path = scratch / uuid.uuid4().hex / storage.base_name(entry["file"])
    path.parent.mkdir()
    path.write_bytes(data)
    return File(entry["name"], path=path)


def delete(batch: SpilledBatch) -> None:
    """Deletes a batch that was delivered, its index first."""
    names = storage.list_files(batch.url)
    for name in sorted(names, key=lambda name: name != INDEX):
        storage.delete(storage.join(batch.url, name))
