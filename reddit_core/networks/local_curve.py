"""A light regressor: a curve for every pixel, and one gamma and one colour matrix for the image; no diffusion.

The kind of network of the Illumination Adaptive Transformer (Cui et al. 2022), much simplified: a few convolutions give
each pixel a factor and a summand, and the mean of their features gives the image its gamma and its colours. It ignores
the noisy image and the noise level, so one step of sampling is all of it: a control, to show what diffusion adds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.brightness import LEAST_LUMA
from reddit_core.networks.film_unet import curved_image, logarithm
from reddit_core.networks.interface import Network, Prediction
from reddit_core.networks.layers import GlobalMean, silu, zeroed
from reddit_core.pixels import signed_from_unit, unit_from_signed

LOW_FORMS = 3


@dataclass(frozen=True, kw_only=True)
class LocalCurveConfig:
    """The shape of the network.

    Attributes:
        channels: width of every convolution.
        num_res_blocks: residual blocks of two convolutions.
        patch_size: side of the patches of pixels that share one position of the features.
    """

    channels: int = 32
    num_res_blocks: int = 3
    patch_size: int = 2

    def __post_init__(self) -> None:
        for name in ("channels", "num_res_blocks", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")

    @property
    def prediction(self) -> Prediction:
        """The clean image."""
        return "x"

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.patch_size

    @property
    def takes_gain(self) -> bool:
        """Always."""
        return True

    def without_dropout(self) -> "LocalCurveConfig":
        """The same network; it has no dropout."""
        return self

    def key_entries(self) -> dict[str, Any]:
        """None: the weights file describes the network."""
        return {}


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut; keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        hidden: Tensor = self.conv2(silu(self.conv1(functional.silu(features))))
        return features + hidden


class LocalCurve(Network):
    """Predicts the clean image from the low-light one and the gain alone: `M (f * curved + s)^gamma` in [0, 1].

    `curved` is the low image through the tone curve at the gain, the factors `f` and summands `s` are of every pixel
    and channel, gamma and the 3 x 3 matrix M of the image. An untrained network gives `curved`.
    """

    config: LocalCurveConfig

    def __init__(self, config: LocalCurveConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.channels, config.patch_size
        self.stem = nn.Conv2d(3 * LOW_FORMS * patch**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResBlock(width) for _ in range(config.num_res_blocks))
        self.local_head = zeroed(nn.Conv2d(width, 2 * 3 * patch**2, 3, padding=1))
        self.mean = GlobalMean()
        self.hidden = nn.Linear(width + 1, width)
        self.global_head = zeroed(nn.Linear(width, 1 + 9))

    def forward(
        self,
        z: Float[Tensor, "b 3 h w"],
        sqrt_alpha_bar: Float[Tensor, " b"],
        *,
        low: Float[Tensor, "b 3 h w"],
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        self.check_size(z)
        gain = self.needed_gain(gain)
        patch = self.config.patch_size
        curved = curved_image(low, gain, saturation=1.0)
        features = self.stem(functional.pixel_unshuffle(torch.cat([low, logarithm(low), curved], dim=1), patch))
        for block in self.blocks:
            features = block(features)
        maps = functional.pixel_shuffle(self.local_head(functional.silu(features)), patch)
        factor, summand = maps.to(low.dtype).chunk(2, dim=1)
        image = torch.addcmul(summand, unit_from_signed(curved), 1 + factor)
        gamma, matrix = self.of_image(features, gain)
        powers = image.clamp(min=LEAST_LUMA) ** gamma[:, None, None, None]
        # Not a matrix product, which autocast would round to bf16.
        return signed_from_unit((matrix[..., None, None] * powers[:, None]).sum(dim=2))

    def of_image(
        self, features: Float[Tensor, "b c h w"], gain: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 3 3"]]:
        """The gamma, in [1/e, e], and the colour matrix of each image."""
        seen = torch.cat([self.mean(features), (gain.log2() / 4)[:, None]], dim=1)
        found: Tensor = self.global_head(functional.silu(self.hidden(seen)))
        matrix = torch.eye(3, dtype=found.dtype, device=found.device) + found[:, 1:].reshape(-1, 3, 3)
        return found[:, 0].tanh().exp(), matrix

    def global_layers(self) -> dict[str, nn.Module]:
        """The mean that gamma and colours come from."""
        return {"mean": self.mean}
