"""A network that sees an image piece by piece, yet normalizes each piece as it would the whole image.

GroupNorm and self-attention look at all positions at once. On a tile alone they see another mean and
variance than on the image, and the result differs by as much as 16 of 255 levels, tile by tile. Here all
tiles share one set of statistics, which is found in two kinds of passes:

- `sample`: patches from all over the image run as one batch, and every norm takes its statistics over the whole
  batch. The patches are few and have borders, so these statistics are biased.
- `survey`: tiles run with the statistics of the last sample, and every norm measures the statistics that it would
  have used itself. Their difference from the sample's corrects the next sample.

The sample thus models how each norm depends on the norms before it, and the survey measures the image: a
fixed-point iteration on `T = G(T)`, in which `G` is the surveyed and `g` the sampled statistics:
`T'_l = g_l(T'_{<l}) + G_l(T) - g_l(T)` (for variances, a ratio instead of a difference). At the fixed point
the sample's bias has cancelled.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.networks import LocalLayer, Network
from reddit_core.networks.layers import SelfAttention

Phase = Literal["sample", "survey", "apply"]
# Layers that do not look at the whole image; a network's own come from LocalLayer, or have such children.
LOCAL_LAYERS = (
    LocalLayer,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.SiLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
)
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
    """Shared by all layers of one network: the phase, and the part of the current tile that a survey counts."""

    phase: Phase | None = None
    num_tiles: int = 0
    height: int = 0
    core: Core | None = None

    def counted(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The core of the tile that features of any resolution belong to."""
        assert self.core is not None, "a survey counts a core"
        scale = self.height // features.shape[-2]
        top, bottom, left, right = (side // scale for side in self.core)
        return features[..., top:bottom, left:right]


class Statistics(NamedTuple):
    """Mean and variance (plus the norm's epsilon, so it is above 0) of each group, float64 [groups]."""

    mean: Tensor
    variance: Tensor


class SharedNorm(nn.Module):
    """A GroupNorm that takes its statistics from the current phase instead of its input."""

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
        assert self.state.phase, "a shared network runs within a pass"
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
        """Computes the correction of the next sample from the survey."""
        counts = torch.tensor([count for count, _ in self.surveyed], dtype=torch.float64)
        means, variances = (torch.stack([part[i] for _, part in self.surveyed]) for i in range(2))
        weights = (counts / counts.sum()).to(means)[:, None]
        mean = (weights * means).sum(dim=0)
        variance = (weights * (variances + (means - mean).square())).sum(dim=0)
        self.shift, self.ratio = mean - self.sampled.mean, variance / self.sampled.variance
        self.surveyed = []


class SharedAttention(nn.Module):
    """Self-attention of every piece to positions of the whole image instead of its own.

    A sample attends to itself. Tiles attend to positions that the last survey counted, or during the first survey to
    those of the sample.
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
        """Takes the surveyed positions as those that tiles attend to."""
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
    """A copy of a network with shared statistics, and the passes that find them.

    A pass is a context that yields the network, to be called like the original. Outside of a pass it raises.

    Raises:
        ValueError: if a layer of the network may look at the whole image, and tiles cannot share its statistics.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.state = copy.deepcopy(network), State()
        self.layers = _replace_global_layers(self.network, self.state)
        self.norms = [module for module in self.network.modules() if isinstance(module, SharedNorm)]

    def forget(self) -> None:
        """Discards all statistics, as every sampling step must: its features have others."""
        for layer in self.layers:
            layer.forget()

    @contextmanager
    def _pass(self, phase: Phase) -> Iterator[Network]:
        self.state.phase = phase
        try:
            yield self.network
        finally:
            self.state.phase = None

    def sample(self) -> AbstractContextManager[Network]:
        """For one call with a batch of patches, whose statistics all layers take over."""
        return self._pass("sample")

    @contextmanager
    def survey(self, num_tiles: int, height: int, core: Core) -> Iterator[Network]:
        """For one call with one of `num_tiles` tiles; it has this height, and its `core` is counted."""
        self.state.num_tiles, self.state.height, self.state.core = num_tiles, height, core
        with self._pass("survey") as network:
            yield network

    def apply(self) -> AbstractContextManager[Network]:
        """For calls with tiles whose output is used."""
        return self._pass("apply")

    def learn(self) -> None:
        """Ends a survey: the next sample is corrected by what it has counted."""
        for layer in self.layers:
            layer.learn()

    @property
    def change(self) -> float:
        """How much the last sample changed any group's mean (in standard deviations) or variance (its logarithm)."""
        return max((norm.change for norm in self.norms), default=0.0)


def _replace_global_layers(network: Network, state: State) -> list[SharedNorm | SharedAttention]:
    """Puts shared layers in the place of a network's global ones; norms come first, also those of attention."""
    replaced: list[str] = []
    for name, layer in network.global_layers().items():
        if _is_within(name, replaced):
            continue
        shared: nn.Module
        if isinstance(layer, nn.GroupNorm):
            shared = SharedNorm(layer, state)
        elif isinstance(layer, SelfAttention):
            shared = SharedAttention(layer, state)
        else:
            raise ValueError(
                f"layer {name} ({type(layer).__name__}) looks at the whole image, but tiles cannot share its "
                "statistics yet; add it to shared_statistics.py, or enhance in one piece with a larger --tile"
            )
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, shared)
        replaced.append(name)
    for name, layer in network.named_modules():
        if not (_is_within(name, replaced) or _is_local(layer)):
            raise ValueError(
                f"layer {name} ({type(layer).__name__}) may look at the whole image, but the network does not name it "
                "among its global layers; add it there, or to LOCAL_LAYERS of shared_statistics.py if it does not"
            )
    norms = [module for module in network.modules() if isinstance(module, SharedNorm)]
    return [*norms, *(module for module in network.modules() if isinstance(module, SharedAttention))]


def _is_within(name: str, others: Sequence[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _is_local(layer: nn.Module) -> bool:
    """Whether a layer is known to look at near positions only; of a project's own layer its children decide."""
    own = not type(layer).__module__.startswith("torch.")
    return isinstance(layer, LOCAL_LAYERS) or (own and next(layer.children(), None) is not None)
