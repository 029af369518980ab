"""The SR3 U-Net that the released ReDDiT weights belong to (Saharia et al. 2021).

Module names follow the released state dict (`downs.N.res_block.block1.block.0` and so on), so that
it loads as it is.
"""

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.networks.interface import Network, Prediction
from reddit_core.networks.layers import GroupNorm, LevelEncoding, SelfAttention, compiles_for_gpu


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of the network, and the meaning of its output.

    Attributes:
        base_channels: width at full resolution; a multiple of `norm_groups` and even.
        channel_mults: width of each level relative to `base_channels`; each level halves H and W.
        attention_levels: levels (0 = full resolution) whose blocks end in self-attention.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        norm_groups: groups of every GroupNorm.
        dropout: probability inside the second half of each residual block.
        prediction: meaning of the output: `eps`, `v = a eps - sigma x_0` (Salimans and Ho 2022, section 4), or `x`, the
            clean image.
    """

    base_channels: int = 64
    channel_mults: tuple[int, ...] = (1, 1, 2, 2, 4)
    attention_levels: tuple[int, ...] = ()
    num_res_blocks: int = 2
    norm_groups: int = 32
    dropout: float = 0.0
    prediction: Prediction = "v"

    def __post_init__(self) -> None:
        if self.base_channels % 2 or self.base_channels % self.norm_groups:
            raise ValueError(
                f"base_channels is {self.base_channels}, but must be even and a multiple of "
                f"norm_groups ({self.norm_groups}); change one of the two"
            )
        if not self.channel_mults or min(self.channel_mults) < 1:
            raise ValueError(f"channel_mults is {self.channel_mults}, but needs positive whole numbers")
        if any(not 0 <= level < len(self.channel_mults) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels is {self.attention_levels}, but there are only the levels "
                f"0 to {len(self.channel_mults) - 1}"
            )
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction is {self.prediction!r}, but must be one of {', '.join(get_args(Prediction))}")

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return int(2 ** (len(self.channel_mults) - 1))

    @property
    def takes_gain(self) -> bool:
        """Never: the released network has to guess the brightness."""
        return False

    def without_dropout(self) -> "UNetConfig":
        """The same network with dropout off."""
        return replace(self, dropout=0.0)

    def key_entries(self) -> dict[str, Any]:
        """`norm_groups`: a released file does not record it, so the file's hash alone does not identify the network."""
        return {"norm_groups": self.norm_groups}


class LevelShift(nn.Module):
    """Adds a per-channel shift that depends on the noise level."""

    def __init__(self, embedding_channels: int, channels: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(embedding_channels, channels))

    def forward(self, features: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        shift: Tensor = self.noise_func(embedding)
        return features + shift[:, :, None, None]


class NormActConv(nn.Module):
    """GroupNorm, SiLU, optional dropout, and a 3 x 3 convolution; keeps H and W."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            GroupNorm(norm_groups, in_channels),
            nn.SiLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        result: Tensor = self.block(features)
        return result


class ResBlock(nn.Module):
    """Two `NormActConv` with the level's shift between them, plus a shortcut; keeps H and W."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.noise_func = LevelShift(config.base_channels, out_channels)
        self.block1 = NormActConv(in_channels, out_channels, config.norm_groups)
        self.block2 = NormActConv(out_channels, out_channels, config.norm_groups, config.dropout)
        self.res_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        hidden = self.noise_func(self.block1(features), embedding)
        result: Tensor = self.block2(hidden) + self.res_conv(features)
        return result


class Block(nn.Module):
    """A residual block, followed by self-attention if the level has it."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, *, attention: bool) -> None:
        super().__init__()
        self.res_block = ResBlock(in_channels, out_channels, config)
        self.attn = SelfAttention(out_channels, config.norm_groups) if attention else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        result: Tensor = self.attn(self.res_block(features, embedding))
        return result


class Downsample(nn.Module):
    """Halves H and W by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        result: Tensor = self.conv(features)
        return result


class Upsample(nn.Module):
    """Doubles H and W by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        result: Tensor = self.conv(functional.interpolate(features, scale_factor=2.0, mode="nearest"))
        return result


class UNet(Network):
    """Predicts `config.prediction` from the noisy image, the level and the low-light image."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, groups = config.base_channels, config.norm_groups
        self.noise_level_mlp = nn.Sequential(
            LevelEncoding(base), nn.Linear(base, base * 4), nn.SiLU(), nn.Linear(base * 4, base)
        )
        last_level = len(config.channel_mults) - 1
        downs: list[nn.Module] = [nn.Conv2d(6, base, 3, padding=1)]
        skips, channels = [base], base
        for level, mult in enumerate(config.channel_mults):
            for _ in range(config.num_res_blocks):
                attention = level in config.attention_levels
                downs.append(Block(channels, base * mult, config, attention=attention))
                channels = base * mult
                skips.append(channels)
            if level < last_level:
                downs.append(Downsample(channels))
                skips.append(channels)
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList(
            [Block(channels, channels, config, attention=True), Block(channels, channels, config, attention=False)]
        )
        ups: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(config.channel_mults))):
            for _ in range(config.num_res_blocks + 1):
                attention = level in config.attention_levels
                ups.append(Block(channels + skips.pop(), base * mult, config, attention=attention))
                channels = base * mult
            if level > 0:
                ups.append(Upsample(channels))
        self.ups = nn.ModuleList(ups)
        self.final_conv = NormActConv(channels, 3, groups)

    def forward(
        self,
        z: Float[Tensor, "b 3 h w"],
        sqrt_alpha_bar: Float[Tensor, " b"],
        *,
        low: Float[Tensor, "b 3 h w"],
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        self.check_size(z)
        embedding = self.noise_level_mlp(sqrt_alpha_bar)
        features = torch.cat([low, z], dim=1)
        if compiles_for_gpu(features):  # tensor cores need this layout, and all later layers keep it
            features = features.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.downs:
            features = block(features, embedding) if isinstance(block, Block) else block(features)
            skips.append(features)
        for block in self.mid:
            features = block(features, embedding)
        for block in self.ups:
            if isinstance(block, Block):
                features = block(torch.cat([features, skips.pop()], dim=1), embedding)
            else:
                features = block(features)
        result: Tensor = self.final_conv(features)
        return result

    def global_layers(self) -> dict[str, nn.Module]:
        """Every GroupNorm and every self-attention."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, (GroupNorm, SelfAttention))}
