"""Integers to images and back: exact where it can be, and the same rounding everywhere."""

import numpy as np
import pytest
import torch

from reddit_core.pixels import (
    pixels_from_signed,
    pixels_from_unit,
    rounded_to_8_bits,
    signed_from_pixels,
    signed_from_unit,
    unit_from_pixels,
    unit_from_signed,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_survives_the_way_there_and_back(dtype: type[np.unsignedinteger]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    pixels = np.stack([values, values[::-1], values], axis=-1)[None, None]
    signed = signed_from_pixels(pixels)
    assert signed.shape == (1, 3, 1, len(values)) and signed.dtype == torch.float32
    assert signed.min() == -1 and signed.max() == 1
    np.testing.assert_array_equal(pixels_from_signed(signed, dtype), pixels)
    np.testing.assert_array_equal(pixels_from_signed(signed_from_pixels(pixels[0]), dtype), pixels)


def test_units_and_signed_agree() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    unit = unit_from_pixels(pixels)
    torch.testing.assert_close(unit_from_signed(signed_from_pixels(pixels)), unit)
    torch.testing.assert_close(signed_from_unit(unit), signed_from_pixels(pixels))
    np.testing.assert_array_equal(pixels_from_unit(unit), pixels)
    assert torch.equal(rounded_to_8_bits(unit + 0.001), unit)


def test_what_lies_outside_is_clipped_and_what_is_not_finite_is_rejected() -> None:
    image = torch.tensor([-1.5, 0.0, 2.0]).view(1, 3, 1, 1)
    assert pixels_from_signed(image).tolist() == [[[[0, 128, 255]]]]
    assert pixels_from_unit(unit_from_signed(image)).tolist() == [[[[0, 128, 255]]]]
    with pytest.raises(ValueError, match="holds values that are not finite; use fp32, or other weights"):
        pixels_from_signed(image / 0)


def test_the_input_is_copied() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels.setflags(write=False)
    signed_from_pixels(pixels).add_(1)
    unit_from_pixels(pixels).add_(1)
    assert not pixels.any()
