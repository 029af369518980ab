"""What a tracking server was away for until the very end, kept beside the run's output until somebody can send it.

A parcel is a folder `unsent/ID` below the output: `index.json`, and one PNG or file per image or artifact.
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
    """One value of a metric; sending the same point twice leaves one."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class File(NamedTuple):
    """An image (pixels, uint8 [H, W, 3]) to show under `name`, or a copied file for the artifact folder `name`."""

    name: str
    step: int = 0
    pixels: NDArray[np.uint8] | None = None
    path: Path = Path()
    timestamp_ms: int = 0


class Parcel(NamedTuple):
    """Points and files that wait at `url`."""

    url: str
    points: Sequence[Point]
    files: Sequence[File]


def save(output: str, points: Sequence[Point], files: Sequence[File]) -> None:
    """Keeps points and files below a run's output; the index comes last, so that no half parcel is ever read."""
    url = storage.join(output, FOLDER, uuid.uuid4().hex)
    entries: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        is_image = file.pixels is not None
        stored = f"{number}.png" if is_image else f"{number}/{file.path.name}"
        storage.write_bytes(storage.join(url, stored), encode(file))
        entry = {"name": file.name, "step": file.step, "file": stored, "image": is_image, "time": file.timestamp_ms}
        entries.append(entry)
    # JSON has no infinities and no NaN, which metrics may well be.
    values = [[point.name, repr(point.value), point.timestamp_ms, point.step] for point in points]
    storage.write_bytes(storage.join(url, INDEX), json.dumps({"points": values, "files": entries}).encode())


def encode(file: File) -> bytes:
    if file.pixels is None:
        return file.path.read_bytes()
    data = io.BytesIO()
    Image.fromarray(file.pixels).save(data, "PNG")
    return data.getvalue()


def parcels(output: str, scratch: Path) -> Iterator[Parcel]:
    """What waits below a run's output; files are copied to the folder `scratch`."""
    folder = storage.join(output, FOLDER)
    for name in storage.list_files(folder):
        if storage.name_of(name) != INDEX:
            continue
        url = storage.join(folder, name.removesuffix(f"/{INDEX}"))
        index = json.loads(storage.read_bytes(storage.join(url, INDEX)))
        points = [Point(name, float(value), timestamp, step) for name, value, timestamp, step in index["points"]]
        yield Parcel(url, points, [fetch(url, entry, scratch) for entry in index["files"]])


def fetch(url: str, entry: dict[str, Any], scratch: Path) -> File:
    data = storage.read_bytes(storage.join(url, entry["file"]))
    if entry["image"]:
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return File(entry["name"], entry["step"], pixels, timestamp_ms=entry["time"])
    path = scratch / uuid.uuid4().hex / storage.name_of(entry["file"])
    path.parent.mkdir()
    path.write_bytes(data)
    return File(entry["name"], path=path)


def delete(parcel: Parcel) -> None:
    """Removes a parcel that was sent, its index first."""
    names = storage.list_files(parcel.url)
    for name in sorted(names, key=lambda name: name != INDEX):
        storage.delete(storage.join(parcel.url, name))
