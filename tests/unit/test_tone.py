"""Brightness and contrast of whole images: the gain, the predicted contrast, and the last step."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.pairs.ray_tasks import tone_columns
from pipelines.shards import TONE_COLUMNS
from reddit_core.brightness import luma_moments, luma_moments_of_pixels, moments_scale, scale_and_shift
from reddit_core.tone import (
    CURVE,
    LEAST_CONTRAST,
    curve_mean,
    fit_contrast,
    make_tone,
    match_tone,
    predict_contrast,
    thumbnail,
    thumbnail_of_pixels,
    tone_features,
)


def dark_pixels(height: int = 61, width: int = 45, dtype: type = np.uint8) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return (rng.random((height, width, 3)) ** 2 * np.iinfo(dtype).max / 6).astype(dtype)


def unit(pixels: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(pixels / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None].float()


def moments(image: torch.Tensor) -> tuple[float, float]:
    mean, deviation = luma_moments([image])
    return mean.item(), deviation.item()


def match_moments(image: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    return scale_and_shift(image, *moments_scale(image, brightness, contrast))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(61, 45), (8, 16), (300, 9), (3, 2)])
def test_thumbnails_of_pixels_and_of_images_agree(shape: tuple[int, int], dtype: type) -> None:
    pixels = dark_pixels(*shape, dtype)
    found = thumbnail_of_pixels(pixels)
    torch.testing.assert_close(found, thumbnail(unit(pixels)), rtol=0, atol=1e-6)
    luma = pixels / np.iinfo(dtype).max @ [0.299, 0.587, 0.114]
    assert found[0, 0].item() == pytest.approx(luma[:8, :8].mean())


def test_the_gain_leads_from_the_low_image_to_the_brightness() -> None:
    pixels = np.full((16, 16, 3), 20, dtype=np.uint8)
    tone = make_tone(thumbnail_of_pixels(pixels), 0.4)
    assert ((20 / 255) ** CURVE * tone.gain).item() == pytest.approx(0.4)
    assert tone.contrast is None
    black = make_tone(thumbnail_of_pixels(np.zeros_like(pixels)), 0.4)
    assert torch.isfinite(black.gain).all()


def test_contrast_is_predicted_as_the_training_pairs_have_it() -> None:
    rng, weights = np.random.default_rng(0), np.array([0.1, -0.1, 0.8, -0.02])
    features = np.concatenate([np.ones((300, 1)), rng.random((300, 3))], axis=1)
    assert fit_contrast(features, features @ weights) == pytest.approx(weights, abs=5e-3)
    assert fit_contrast(features[:1], np.array([0.2])) == (0.2, 0.0, 0.0, 0.0)
    luma, brightness = thumbnail_of_pixels(dark_pixels()), torch.tensor([0.4], dtype=torch.float64)
    predicted = predict_contrast(luma, brightness, tuple(weights))
    assert predicted.item() == pytest.approx(float(tone_features(luma, brightness)[0].numpy() @ weights))
    assert predict_contrast(luma, brightness, (-1.0, 0.0, 0.0, 0.0)).item() == LEAST_CONTRAST


def test_an_asked_contrast_goes_before_the_predicted_one() -> None:
    luma, weights = thumbnail_of_pixels(dark_pixels()), (0.2, 0.0, 0.0, 0.0)
    for contrast, expected in ((None, 0.2), (0.1, 0.1), (torch.tensor([0.0]), 0.2), (torch.tensor([0.15]), 0.15)):
        found = make_tone(luma, 0.4, contrast, weights).contrast
        assert found is not None and found.item() == pytest.approx(expected)


@pytest.mark.parametrize(("brightness", "contrast"), [(0.45, 0.2), (0.2, 0.1), (0.6, 0.25)])
def test_brightness_and_contrast_are_met_in_spite_of_clipping(brightness: float, contrast: float) -> None:
    image = torch.rand(2, 3, 90, 70, generator=torch.Generator().manual_seed(0)) ** 2
    asked = (torch.full((2,), value, dtype=torch.float64) for value in (brightness, contrast))
    matched = match_moments(image, *asked)
    assert matched.min() >= 0 and matched.max() <= 1
    mean, deviation = luma_moments([matched])
    assert mean.tolist() == pytest.approx([brightness] * 2, abs=0.005)
    assert deviation.tolist() == pytest.approx([contrast] * 2, abs=0.01)


def test_flat_images_stay_flat_and_get_the_brightness() -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    matched = match_moments(images, torch.full((2,), 0.5), torch.full((2,), 0.2))
    torch.testing.assert_close(matched, torch.full_like(matched, 0.5))


def test_bands_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    whole = match_moments(image, torch.tensor([0.4]), torch.tensor([0.2]))
    monkeypatch.setattr("reddit_core.brightness.BAND_ROWS", 16)
    torch.testing.assert_close(match_moments(image, torch.tensor([0.4]), torch.tensor([0.2])), whole)


def test_the_tone_is_matched_in_signed_images() -> None:
    signed = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tone = make_tone(thumbnail_of_pixels(dark_pixels()), 0.4, 0.15)
    assert moments((match_tone(signed, tone) + 1) / 2) == pytest.approx((0.4, 0.15), abs=0.005)
    assert match_tone(signed, None) is signed
    scaled = match_tone(signed, make_tone(thumbnail_of_pixels(dark_pixels()), 0.4))
    assert moments((scaled + 1) / 2)[0] == pytest.approx(0.4, abs=0.005)


def test_pair_shards_have_the_moments_of_whole_images() -> None:
    low, normal = dark_pixels(), dark_pixels()[::-1] * 5
    columns = tone_columns(low, *luma_moments_of_pixels(normal))
    assert tuple(columns) == TONE_COLUMNS
    luma = normal / 255 @ [0.299, 0.587, 0.114]
    assert columns["normal_luma"] == pytest.approx(luma.mean())
    assert columns["normal_contrast"] == pytest.approx(luma.std())
    assert columns["low_curve"] == pytest.approx(curve_mean(thumbnail_of_pixels(low)).item())
    features = tone_features(thumbnail_of_pixels(low), torch.tensor([luma.mean()]))
    assert columns["curve_deviation"] == pytest.approx(features[0, 2].item())
