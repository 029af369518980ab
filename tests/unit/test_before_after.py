"""The grid of before and after, for images of any shape."""

import numpy as np
import pytest

from pipelines.evaluation.before_after import COLUMN_WIDTH, LABEL_HEIGHT, MOST_HEIGHT, before_after, shrink
from pipelines.evaluation.methods import Method
from pipelines.images import encode_png


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(2, 1400, (1, COLUMN_WIDTH)), (1400, 2, (MOST_HEIGHT, 1)), (400, 600, (200, 300)), (8, 8, (300, 300))],
)
def test_images_of_any_shape_fit_a_column(height: int, width: int, expected: tuple[int, int]) -> None:
    image = np.full((height, width, 3), 7, np.uint8)
    assert shrink(image).shape[:2] == expected
    grid = before_after([Method("input", 0)], [[encode_png(image), encode_png(shrink(image))]])
    assert grid.shape == (LABEL_HEIGHT + expected[0], 2 * COLUMN_WIDTH, 3)
    left, right = np.split(grid[LABEL_HEIGHT:], 2, axis=1)
    assert np.array_equal(left, right) and (left == 7).any()
