"""A labelled grid of input, methods and ground truth."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.images import decode

LABEL_HEIGHT = 22
COLUMN_WIDTH = 300
MOST_HEIGHT = 2 * COLUMN_WIDTH


class Labelled(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...


def label_of(method: Labelled) -> str:
    return f"{method.name}, {method.steps} steps" if method.steps else method.name


def before_after(methods: Sequence[Labelled], images: Sequence[Sequence[bytes]]) -> NDArray[np.uint8]:
    """A grid with a row for each image (encoded results of each method, then the ground truth), labelled above."""
    labels = [*(label_of(method) for method in methods), "ground truth"]
    rows = [np.concatenate([in_column(decode(data)) for data in row], axis=1) for row in images]
    header = Image.new("RGB", (COLUMN_WIDTH * len(labels), LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(header)
    for column, label in enumerate(labels):
        draw.text((column * COLUMN_WIDTH + 6, 3), label, fill="black", font=ImageFont.load_default(14))
    return np.concatenate([np.asarray(header), *rows])


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image resized to the width of a column, or to less if it would be higher than `MOST_HEIGHT`."""
    height, width = image.shape[:2]
    scale = min(COLUMN_WIDTH / width, MOST_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def in_column(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The shrunk image in the middle of a column, white beside it."""
    picture = shrink(image)
    column = np.full((picture.shape[0], COLUMN_WIDTH, 3), 255, np.uint8)
    left = (COLUMN_WIDTH - picture.shape[1]) // 2
    column[:, left : left + picture.shape[1]] = picture
    return column
