"""A U-Net that sees an image piece by piece, yet normalizes each piece as it would the whole image.

GroupNorm and self-attention look at all positions at once. On a tile alone they see another mean and
variance than on the image, and the result differs by as much as 16 of 255 levels, tile by tile. Here all
tiles share one set of statistics, which is found in two kinds of passes:

- `sample`: patches from all over the image run side by side as one batch, and every norm takes its
  statistics over the whole batch. The patches are few and have borders, so this is biased.
- `survey`: tiles run with the statistics of the last sample, and every norm notes what it would have seen
  of them. What it sees beyond what it saw of the sample is a correction of the next sample.

So the sample stands for how each norm reacts to the ones before it, and the survey for the image: a
fixed-point iteration on `T = G(T)`, in which `G` is the surveyed and `g` the sampled statistics:
`T'_l = g_l(T'_{<l}) + G_l(T) - g_l(T)` (for variances, a ratio instead of a difference). At the fixed point
the sample's bias has cancelled.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.networks.sr3_unet import SelfAttention, UNet

Phase = Literal["sample", "survey", "apply"]
# Positions that a tile attends to, spread evenly over the sample; bounds what attention costs.
MAX_KEYS = 16_384


class Core(NamedTuple):
    """The part of a piece that a survey counts, in pixels: rows and columns [start, stop)."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass
class State:
    """What all layers of one network have in common: the phase, and what the survey counts of the present piece."""

    phase: Phase = "sample"
    num_tiles: int = 0
    height: int = 0
    core: Core | None = None

    def counted(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The core of the tile that features of any level belong to."""
        assert self.core is not None, "a survey counts a core"
        scale = self.height // features.shape[-2]
        top, bottom, left, right = (side // scale for side in self.core)
        return features[..., top:bottom, left:right]


class Statistics(NamedTuple):
    """Mean and variance (plus the norm's epsilon, so it is above 0) of each group, float64 [groups]."""

    mean: Tensor
    variance: Tensor


class SharedNorm(nn.Module):
    """A GroupNorm whose statistics come from the phase instead of the piece at hand."""

    def __init__(self, norm: nn.GroupNorm, state: State) -> None:
        super().__init__()
        self.norm, self.state = norm, state
        self.forget()

    def forget(self) -> None:
        self.used: Statistics | None = None
        self.change = math.inf
        self.shift: Tensor | float = 0.0
        self.ratio: Tensor | float = 1.0
        self.surveyed: list[tuple[int, Statistics]] = []

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.state.phase == "sample":
            self.sampled = self.measure(features)
            self.use(Statistics(self.sampled.mean + self.shift, self.sampled.variance * self.ratio))
        elif self.state.phase == "survey":
            counted = self.state.counted(features)
            self.surveyed.append((counted[0, 0].numel(), self.measure(counted)))
        return self.normalize(features)

    def measure(self, features: Float[Tensor, "b c h w"]) -> Statistics:
        """Over the batch and all positions."""
        batch, _, height, width = features.shape
        groups = features.float().view(batch, self.norm.num_groups, -1, height, width)
        variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
        return Statistics(mean.double(), variance.double() + self.norm.eps)

    def use(self, statistics: Statistics) -> None:
        if self.used is not None:
            shift = (statistics.mean - self.used.mean).abs() / statistics.variance.sqrt()
            stretch = (statistics.variance / self.used.variance).log().abs()
            self.change = float(torch.maximum(shift, stretch).max())
        self.used = statistics

    def normalize(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        assert self.used is not None, "the first pass over an image is a sample"
        per_group = features.shape[1] // self.norm.num_groups
        mean, variance = (value.repeat_interleave(per_group) for value in self.used)
        scale = self.norm.weight / variance.sqrt()
        offset = (self.norm.bias - mean * scale).float()[:, None, None]
        return torch.addcmul(offset, features.float(), scale.float()[:, None, None]).to(features.dtype)

    def learn(self) -> None:
        """Turns what was surveyed into the correction of the next sample."""
        counts = torch.tensor([count for count, _ in self.surveyed], dtype=torch.float64)
        means, variances = (torch.stack([part[i] for _, part in self.surveyed]) for i in range(2))
        weights = (counts / counts.sum()).to(means)[:, None]
        mean = (weights * means).sum(dim=0)
        variance = (weights * (variances + (means - mean).square())).sum(dim=0)
        self.shift, self.ratio = mean - self.sampled.mean, variance / self.sampled.variance
        self.surveyed = []


class SharedAttention(nn.Module):
    """Self-attention of every piece to positions of the whole image, instead of to its own.

    A sample attends to itself. Tiles attend to the positions that the last survey counted, in the first
    survey to those of the sample.
    """

    def __init__(self, attention: SelfAttention, state: State) -> None:
        super().__init__()
        self.norm = SharedNorm(attention.norm, state)
        self.qkv, self.out, self.state = attention.qkv, attention.out, state
        self.forget()

    def forget(self) -> None:
        self.surveyed: list[Tensor] = []
        self.learned: Tensor | None = None

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        projected = self.qkv(self.norm(features))
        query = projected.flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)[0]
        if self.state.phase == "sample":
            self.sampled = choose(positions_of(projected), MAX_KEYS)
        elif self.state.phase == "survey":
            counted = positions_of(self.state.counted(projected))
            self.surveyed.append(choose(counted, -(-MAX_KEYS // self.state.num_tiles)))
        seen = self.sampled if self.state.phase == "sample" or self.learned is None else self.learned
        _, key, value = seen.expand(len(query), 1, -1, -1).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = features + self.out(attended[:, 0].transpose(1, 2).reshape(features.shape))
        return result

    def learn(self) -> None:
        """Turns what was surveyed into what tiles attend to."""
        self.learned = torch.cat(self.surveyed)
        self.surveyed = []


def positions_of(projected: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    return projected.permute(0, 2, 3, 1).flatten(0, 2)


def choose(positions: Float[Tensor, "n c"], most: int) -> Float[Tensor, "m c"]:
    """A seeded random choice of at most `most` positions; regular steps could fall in step with columns."""
    if len(positions) <= most:
        return positions
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    return positions[order[:most].to(positions.device)]


class SharedNetwork:
    """A copy of a U-Net with shared statistics, and the passes that find them.

    Attributes:
        unet: to be called like any U-Net, after `sampling()` or `surveying(...)` or `applying()`.
    """

    def __init__(self, unet: UNet) -> None:
        self.unet, self.state = copy.deepcopy(unet), State()
        _replace(self.unet, self.state)
        self.norms = [module for module in self.unet.modules() if isinstance(module, SharedNorm)]
        attentions = [module for module in self.unet.modules() if isinstance(module, SharedAttention)]
        self.layers: list[SharedNorm | SharedAttention] = [*self.norms, *attentions]

    def forget(self) -> None:
        """Starts anew, as every sampling step must: its features have other statistics."""
        for layer in self.layers:
            layer.forget()

    def sampling(self) -> UNet:
        """For one call with a batch of patches."""
        self.state.phase = "sample"
        return self.unet

    def surveying(self, num_tiles: int, height: int, core: Core) -> UNet:
        """For one call with one of `num_tiles` tiles, which has this height and of which `core` is counted."""
        self.state.phase, self.state.num_tiles, self.state.height, self.state.core = "survey", num_tiles, height, core
        return self.unet

    def applying(self) -> UNet:
        """For calls with tiles whose output is used."""
        self.state.phase = "apply"
        return self.unet

    def learn(self) -> None:
        """To be called after a survey; the next sample is corrected by it."""
        for layer in self.layers:
            layer.learn()

    @property
    def change(self) -> float:
        """How much the last sample changed any group's mean (in standard deviations) or variance (its logarithm)."""
        return max(norm.change for norm in self.norms)


def _replace(module: nn.Module, state: State) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, SharedNorm(child, state))
        elif isinstance(child, SelfAttention):
            setattr(module, name, SharedAttention(child, state))
        else:
            _replace(child, state)
