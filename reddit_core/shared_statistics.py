"""A network that sees an image piece by piece, yet normalizes each piece as it would the whole image.

GroupNorm, self-attention and global means look at all positions at once. On a tile alone they see another mean and
variance than on the image, and the result differs by as much as 16 of 255 levels, tile by tile. Here all
tiles share one set of statistics. A pass called `sample` finds them: patches from all over the image run as one batch,
and every norm takes its statistics over the inner parts of all of them, so that the borders of patches do not bias
them. Tiles then run in passes called `apply`, with these statistics.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.networks import LocalLayer, Network
from reddit_core.networks.layers import GlobalMean, SelfAttention

Phase = Literal["sample", "apply"]
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


@dataclass
class State:
    """Shared by all layers of one network.

    Attributes:
        phase: of the current pass; None outside of one.
        height: of the patches of a sample.
        margins: what a sample does not count of each patch, in pixels: above and below, left and right.
    """

    phase: Phase | None = None
    height: int = 0
    margins: tuple[int, int] = (0, 0)

    def counted(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The inner part of features of any resolution."""
        height, width = features.shape[-2:]
        rows, columns = (margin * height // self.height for margin in self.margins)
        return features[..., rows : height - rows, columns : width - columns]


class Statistics(NamedTuple):
    """Mean and variance (plus the norm's epsilon, so it is above 0) of each group, float64 [groups]."""

    mean: Tensor
    variance: Tensor


class SharedNorm(nn.Module):
    """A GroupNorm that takes its statistics from the current phase instead of its input."""

    def __init__(self, norm: nn.GroupNorm, state: State) -> None:
        super().__init__()
        self.norm, self.state = norm, state
        self.used: Statistics | None = None

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        assert self.state.phase, "a shared network runs within a pass"
        if self.state.phase == "sample":
            self.used = self.measure(self.state.counted(features))
        return self.normalize(features)

    def measure(self, features: Float[Tensor, "b c h w"]) -> Statistics:
        """Over the batch and all positions."""
        batch, _, height, width = features.shape
        groups = features.float().reshape(batch, self.norm.num_groups, -1, height, width)
        variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
        return Statistics(mean.double(), variance.double() + self.norm.eps)

    def normalize(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        assert self.used is not None, "the first pass over an image is a sample"
        per_group = features.shape[1] // self.norm.num_groups
        mean, variance = (value.repeat_interleave(per_group) for value in self.used)
        scale = self.norm.weight / variance.sqrt()
        offset = (self.norm.bias - mean * scale).float()[:, None, None]
        return torch.addcmul(offset, features.float(), scale.float()[:, None, None]).to(features.dtype)


class SharedAttention(nn.Module):
    """Self-attention of every piece to positions of the sample instead of its own."""

    def __init__(self, attention: SelfAttention, state: State) -> None:
        super().__init__()
        self.norm = SharedNorm(attention.norm, state)
        self.qkv, self.out, self.state = attention.qkv, attention.out, state

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        projected = self.qkv(self.norm(features))
        query = projected.flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)[0]
        if self.state.phase == "sample":
            self.sampled = choose(positions_of(self.state.counted(projected)), MAX_KEYS)
        _, key, value = self.sampled.expand(len(query), 1, -1, -1).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = features + self.out(attended[:, 0].transpose(1, 2).reshape(features.shape))
        return result


class SharedMean(nn.Module):
    """The mean over the sample, for every piece."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        if self.state.phase == "sample":
            self.sampled = self.state.counted(features).mean(dim=(0, 2, 3))
        return self.sampled.expand(len(features), -1)


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
        _replace_global_layers(self.network, self.state)

    @contextmanager
    def _pass(self, phase: Phase) -> Iterator[Network]:
        self.state.phase = phase
        try:
            yield self.network
        finally:
            self.state.phase = None

    def sample(self, height: int, margins: tuple[int, int]) -> AbstractContextManager[Network]:
        """For one call with a batch of patches, whose statistics all layers take over (`State` says what counts)."""
        self.state.height, self.state.margins = height, margins
        return self._pass("sample")

    def apply(self) -> AbstractContextManager[Network]:
        """For calls with tiles, after a sample of the same sampling step."""
        return self._pass("apply")


def _replace_global_layers(network: Network, state: State) -> None:
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
        elif isinstance(layer, GlobalMean):
            shared = SharedMean(state)
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


def _is_within(name: str, others: Sequence[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _is_local(layer: nn.Module) -> bool:
    """Whether a layer is known to look at near positions only; of a project's own layer its children decide."""
    own = not type(layer).__module__.startswith("torch.")
    return isinstance(layer, LOCAL_LAYERS) or (own and next(layer.children(), None) is not None)
