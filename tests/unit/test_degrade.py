"""The physical low-light model."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reddit_core.degrade import GAMMA, DegradeConfig, degrade

Photographs = dict[str, NDArray[np.uint8]]
NOISELESS: dict[str, Any] = {"cast": 0.0, "full_well": 1e9, "read_noise": 0.0}


def at(stops: float, **others: float) -> DegradeConfig:
    return DegradeConfig(stops=(stops, stops), **others)


def test_an_exposure_follows_from_its_seed(photographs: Photographs) -> None:
    for photograph in photographs.values():
        one, again, other = (degrade(photograph, DegradeConfig(), np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert one.dtype == np.uint8 and one.shape == photograph.shape
        assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_less_light_is_darker(photographs: Photographs) -> None:
    for photograph in photographs.values():
        means = [degrade(photograph, at(stops), np.random.default_rng(0)).mean() for stops in (0, 2, 4, 6)]
        assert photograph.mean() > means[1] > means[2] > means[3]


def test_the_range_of_stops_bounds_the_darkening() -> None:
    gray = np.full((32, 32, 3), 200, np.uint8)
    means = [degrade(gray, DegradeConfig(**NOISELESS), np.random.default_rng(seed)).mean() for seed in range(50)]
    assert min(means) >= 200 * 2 ** (-5.5 / GAMMA) - 1 and max(means) <= 200 * 2 ** (-3.5 / GAMMA) + 1
    assert max(means) > min(means) + 5


def test_without_noise_it_is_a_power_of_two_in_linear_light(photographs: Photographs) -> None:
    photograph = photographs["astronaut"]
    assert np.array_equal(degrade(photograph, at(0, **NOISELESS), np.random.default_rng(0)), photograph)
    expected = np.rint(photograph * 2 ** (-4 / GAMMA))
    dark = degrade(photograph, at(4, **NOISELESS), np.random.default_rng(0))
    assert np.abs(dark - expected).max() <= 1


def test_shot_noise_grows_with_the_signal_and_relatively_falls() -> None:
    deviations, relative = [], []
    for value in (60, 120, 240):
        flat = np.full((64, 64, 3), value, np.uint8)
        config = at(0, cast=0.0, full_well=1000.0, read_noise=0.0)
        linear = (degrade(flat, config, np.random.default_rng(0)) / 255.0) ** GAMMA
        deviations.append(linear.std())
        relative.append(linear.std() / linear.mean())
    assert deviations[0] < deviations[1] < deviations[2]
    assert relative[0] > relative[1] > relative[2]
    expected = np.sqrt((120 / 255) ** GAMMA / 1000)  # a Poisson's, in shares of white
    assert deviations[1] == pytest.approx(expected, rel=0.05)


def test_a_cast_changes_red_and_blue_against_green() -> None:
    flat = np.full((16, 16, 3), 200, np.uint8)
    config = DegradeConfig(stops=(1, 1), **{**NOISELESS, "cast": 0.3})
    red, green, blue = degrade(flat, config, np.random.default_rng(0)).mean(axis=(0, 1))
    assert green == pytest.approx(200 * 2 ** (-1 / GAMMA), abs=1)
    assert abs(red - green) > 2 or abs(blue - green) > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stops": (5.0, 3.0)}, "stops run from 5.0 to 3.0, but must rise from at least 0"),
        ({"stops": (-1.0, 3.0)}, "stops run from -1.0 to 3.0, but must rise"),
        ({"cast": 1.0}, r"cast is 1.0, but must be in \[0, 1\); 0.1 is a mild one"),
        ({"full_well": 0.0}, "full_well is 0.0 and read_noise 4.0, but electrons must be positive"),
        ({"read_noise": -1.0}, r"read_noise -1.0, but electrons must be positive \(read noise may be 0\)"),
    ],
)
def test_what_cannot_be_is_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DegradeConfig(**settings)
