"""The shipped student on the GPU: the pictures of the CPU, whole, in tiles and in bf16."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.config.use import DEFAULT_STUDENT
from pipelines.weights import load_student
from reddit_core.pixels import Pixels
from reddit_core.precision import Precision

STEPS = (1, 2)


@pytest.fixture(scope="module")
def night() -> Pixels:
    """A photograph of 320 x 256 pixels, dark and with noise."""
    import skimage.data  # noqa: PLC0415 - slow to import

    dark = skimage.data.astronaut()[:320, :256] / 12
    noisy: NDArray[np.uint8] = np.random.default_rng(0).poisson(dark).clip(0, 255).astype(np.uint8)
    return noisy


def difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Mean difference in 8-bit levels."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.5), ("bf16", 1.5)])
def test_its_pictures_are_those_of_the_cpu(
    night: Pixels, device: torch.device, steps: int, precision: Precision, most: float
) -> None:
    expected = load_student(str(DEFAULT_STUDENT)).enhance(night, steps=steps)
    result = load_student(str(DEFAULT_STUDENT), str(device), precision).enhance(night, steps=steps)
    assert result.shape == night.shape
    assert difference(result, expected) < most


@pytest.mark.parametrize("steps", STEPS)
def test_tiles_are_one_piece(night: Pixels, device: torch.device, steps: int) -> None:
    student = load_student(str(DEFAULT_STUDENT), str(device))
    whole = student.enhance(night, steps=steps, tile=320)
    tiled = student.enhance(night, steps=steps, tile=192, overlap=48)
    assert difference(tiled, whole) < 1
