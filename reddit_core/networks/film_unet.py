"""The default denoiser: a narrow U-Net that predicts the clean image, as a correction of the low image's tone curve.

Most of an enhanced image is one global tone curve, `clip(gain * low^CURVE)` (`reddit_core.tone`). So the network is
handed the curved image and adds its prediction to a blurred copy of it: it learns what is left, which is noise, colour
and local contrast. Few operations per pixel: patches of pixels, narrow levels where there are many of them. Each
residual block is scaled and shifted by an embedding of noise level and gain (FiLM, Perez et al. 2018). Predicting `x_0`
keeps the noise of every pixel from having to pass through the network (Li and He 2025).
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.brightness import gray
from reddit_core.networks.interface import Network, Prediction
from reddit_core.networks.layers import GroupNorm, silu, zeroed
from reddit_core.pixels import signed_from_unit, unit_from_signed
from reddit_core.tone import tone_curve

LOW_FORMS = 3


@dataclass(frozen=True, kw_only=True)
class FilmUNetConfig:
    """The shape of the network.

    Attributes:
        channels: width of each level; each level halves H and W. Multiples of `norm_groups`.
        num_res_blocks: residual blocks per level, on the way down and again on the way up.
        patch_size: side of the patches that become one position of the first level; 1 works on pixels.
        embedding_channels: width of the embedding of level and gain.
        norm_groups: groups of every GroupNorm.
        dropout: probability inside the second half of each residual block.
        blur: side of the blocks over which the curved image is averaged before the prediction is added to it, so that
            its noise is not added too.
        saturation: factor on the colour differences of the curved image, which the curve makes too large.
    """

    channels: tuple[int, ...] = (32, 64, 128, 128)
    num_res_blocks: int = 1
    patch_size: int = 2
    embedding_channels: int = 128
    norm_groups: int = 8
    dropout: float = 0.0
    blur: int = 8
    saturation: float = 0.77

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % self.norm_groups for width in self.channels):
            raise ValueError(
                f"channels is {self.channels}, but needs positive multiples of norm_groups ({self.norm_groups}); "
                "change one of the two"
            )
        if self.patch_size not in (1, 2, 4, 8):
            raise ValueError(f"patch_size is {self.patch_size}, but must be 1, 2, 4 or 8")
        if self.blur < 1:
            raise ValueError(f"blur is {self.blur}, but must be at least 1 pixel; 8 is usual")
        if self.saturation < 0:
            raise ValueError(f"saturation is {self.saturation}, but must not be negative; 0.77 is usual")

    @property
    def prediction(self) -> Prediction:
        """The clean image."""
        return "x"

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return math.lcm(self.patch_size * 2 ** (len(self.channels) - 1), self.blur)

    @property
    def takes_gain(self) -> bool:
        """Always."""
        return True

    def without_dropout(self) -> "FilmUNetConfig":
        """The same network with dropout off."""
        return replace(self, dropout=0.0)

    def key_entries(self) -> dict[str, Any]:
        """None: the weights file describes the network."""
        return {}


def curved_image(
    low: Float[Tensor, "b 3 h w"], gain: Float[Tensor, " b"], saturation: float
) -> Float[Tensor, "b 3 h w"]:
    """The low-light image in [-1, 1] through the tone curve at a gain, less saturated; in [-1, 1]."""
    exposed = (tone_curve(unit_from_signed(low)) * gain[:, None, None, None]).clamp(max=1)
    return signed_from_unit(torch.lerp(gray(exposed), exposed, saturation))


def logarithm(low: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The logarithm of the low-light image, both in [-1, 1]."""
    return signed_from_unit(torch.log1p(255 * unit_from_signed(low).clamp(min=0)) / math.log(256))


def blurred(image: Float[Tensor, "b 3 h w"], block: int) -> Float[Tensor, "b 3 h w"]:
    """The image averaged over blocks, and interpolated between their centres."""
    means = functional.avg_pool2d(image, block)
    return functional.interpolate(means, scale_factor=float(block), mode="bilinear")


class Embedding(nn.Module):
    """Noise level and gain as one vector.

    The level enters as the angle `atan2(sigma, a)` (Salimans and Ho 2022, appendix D), in sines and cosines of its
    multiples; the gain as its logarithm.
    """

    FREQUENCIES = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.gain = nn.Sequential(nn.Linear(1, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, sqrt_alpha_bar: Float[Tensor, " b"], gain: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        angle = torch.acos(sqrt_alpha_bar.float().clamp(0, 1))
        multiples = angle[:, None] * torch.arange(1, self.FREQUENCIES + 1, device=angle.device)
        waves = torch.cat([multiples.sin(), multiples.cos()], dim=1).to(sqrt_alpha_bar.dtype)
        exposure = (gain.log2() / 4)[:, None]
        result: Tensor = functional.silu(self.level(waves) + self.gain(exposure))
        return result


class FilmBlock(nn.Module):
    """Two convolutions with a scale and a shift by the embedding between them, beside a shortcut; keeps H and W."""

    def __init__(self, in_channels: int, out_channels: int, config: FilmUNetConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(config.embedding_channels, 2 * out_channels)
        self.norm2 = GroupNorm(config.norm_groups, out_channels)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        hidden: Tensor = self.conv1(silu(self.norm1(features)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        hidden = self.conv2(self.dropout(silu(hidden)))
        return hidden.add_(self.shortcut(features))


class Blocks(nn.Module):
    """The residual blocks of one level, one after the other; keeps H and W."""

    def __init__(self, in_channels: int, channels: int, config: FilmUNetConfig) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * config.num_res_blocks]
        self.blocks = nn.ModuleList(FilmBlock(a, b, config) for a, b in pairwise(widths))

    def forward(self, features: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        for block in self.blocks:
            features = block(features, embedding)
        return features


class FilmUNet(Network):
    """Predicts the clean image from the noisy one, the low-light one, the noise level and the gain."""

    config: FilmUNetConfig

    def __init__(self, config: FilmUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, patch = config.channels, config.patch_size
        self.embedding = Embedding(config.embedding_channels)
        self.stem = nn.Conv2d((3 + 3 * LOW_FORMS) * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(Blocks(width, width, config) for width in widths)
        self.decoder = nn.ModuleList(Blocks(2 * width, width, config) for width in widths[:-1])
        self.norm = GroupNorm(config.norm_groups, widths[0])
        self.head = zeroed(nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1))

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
        embedding = self.embedding(sqrt_alpha_bar, gain)
        curved = curved_image(low, gain, self.config.saturation)
        patch = self.config.patch_size
        features = self.stem(functional.pixel_unshuffle(torch.cat([z, low, logarithm(low), curved], dim=1), patch))
        skips = []
        for level, blocks in enumerate(self.encoder):
            features = blocks(self.down[level - 1](features) if level else features, embedding)
            skips.append(features)
        skips.pop()  # the lowest level's, which is `features`
        for level in reversed(range(len(self.decoder))):
            # What is not used again is not held: the largest tensors are here.
            features = torch.cat([functional.pixel_shuffle(self.up[level](features), 2), skips.pop()], dim=1)
            features = self.decoder[level](features, embedding)
        output = self.head(silu(self.norm(features)))
        correction: Tensor = functional.pixel_shuffle(output, patch)
        return blurred(curved, self.config.blur) + correction

    @property
    def untiled_pixels(self) -> int:
        """12.5 megapixels at the default width, which is measured; memory grows with the channels of a pixel."""
        return 100_000_000 * self.config.patch_size**2 // self.config.channels[0]

    def global_layers(self) -> dict[str, nn.Module]:
        """Every GroupNorm."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, GroupNorm)}
