"""The demo's photographs, which come with scikit-image and scikit-learn; two whole scenes are held out."""

import csv
import io
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.images import decode, encode_png

# Training scenes are cut into pieces, so that each is darkened by an exposure of its own.
PIECE = 256
TRAINED_ON = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "ihc.png"),
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
)
HELD_OUT = (("skimage.data", "coffee.png"), ("skimage.data", "chelsea.png"))


def write_photographs(folder: str) -> str:
    """Writes the photographs as PNG to `folder`, and the CSV of their splits next to it; returns the URL of the CSV."""
    rows = []
    for package, name in TRAINED_ON:
        for index, piece in enumerate(pieces(read_bundled(package, name))):
            rows.append((f"{name.partition('.')[0]}-{index:02d}.png", "train", piece))
    for package, name in HELD_OUT:
        rows.append((f"{name.partition('.')[0]}.png", "validation", read_bundled(package, name)))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("pair_id", "split"))
    for name, split, image in rows:
        storage.write_bytes(storage.join(folder, name), encode_png(image))
        writer.writerow((name, split))
    splits = f"{folder}-splits.csv"
    storage.write_bytes(splits, table.getvalue().encode())
    return splits


def read_bundled(package: str, name: str) -> NDArray[np.uint8]:
    return decode((resources.files(package) / name).read_bytes())


def pieces(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image in overlapping squares that together cover it."""
    size = min(PIECE, *image.shape[:2])
    corners = [np.unique(np.linspace(0, length - size, -(-length // size)).astype(int)) for length in image.shape[:2]]
    return [image[y : y + size, x : x + size] for y in corners[0] for x in corners[1]]
