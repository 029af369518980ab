"""A physical model of a low-light exposure, to make pairs from normal-light photographs alone.

Linear light, an exposure in stops, a colour cast, shot noise that grows with the signal, read noise that
does not, and the camera's gamma and 8 bits again (Foi et al. 2008 for the noise model).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAMMA = 2.2


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """Ranges of the random exposure.

    Attributes:
        stops: least and greatest darkening in photographic stops (4 is a sixteenth of the light).
        cast: greatest relative gain error of the red and blue channels against green.
        full_well: electrons of a white pixel at the normal exposure; less is noisier.
        read_noise: standard deviation of the read noise in electrons.
    """

    stops: tuple[float, float] = (3.5, 5.5)
    cast: float = 0.1
    full_well: float = 20_000.0
    read_noise: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.stops[0] <= self.stops[1]:
            raise ValueError(f"stops run from {self.stops[0]} to {self.stops[1]}, but must rise from at least 0")
        if not 0 <= self.cast < 1:
            raise ValueError(f"cast is {self.cast}, but must be in [0, 1); 0.1 is a mild one")
        if self.full_well <= 0 or self.read_noise < 0:
            raise ValueError(
                f"full_well is {self.full_well} and read_noise {self.read_noise}, "
                "but electrons must be positive (read noise may be 0)"
            )


def degrade(normal: NDArray[np.uint8], config: DegradeConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Simulates a low-light exposure of a photograph; both are [H, W, 3] uint8 in display gamma (2.2)."""
    stops = rng.uniform(*config.stops)
    red, blue = 1 + rng.uniform(-config.cast, config.cast, size=2)
    linear = (normal.astype(np.float64) / 255) ** GAMMA
    exposed = linear * np.exp2(-stops) * np.array([red, 1.0, blue])
    electrons = rng.poisson(exposed * config.full_well) + rng.normal(0, config.read_noise, size=normal.shape)
    return np.asarray(np.rint(255 * np.clip(electrons / config.full_well, 0, 1) ** (1 / GAMMA)), dtype=np.uint8)
