"""A labelled grid of input, methods and ground truth."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.images import decode

LABEL_HEIGHT = 22
COLUMN_WIDTH = 300


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
    rows = [np.concatenate([shrink(decode(data)) for data in row], axis=1) for row in images]
    header = Image.new("RGB", (COLUMN_WIDTH * len(labels), LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(header)
    for column, label in enumerate(labels):
        draw.text((column * COLUMN_WIDTH + 6, 3), label, fill="black", font=ImageFont.load_default(14))
    return np.concatenate([np.asarray(header), *rows])


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image resized to the width of a column, [h, w, 3] uint8."""
    height = round(image.shape[0] * COLUMN_WIDTH / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((COLUMN_WIDTH, height), Image.Resampling.LANCZOS))
