"""LPIPS (Zhang et al. 2018) with a VGG16 or AlexNet state dict from the user.

No torchvision: the convolutions are rebuilt from the state dict's own `features.N.weight` names, with
ReLU after each and max pooling where the architecture has it.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Backbone = Literal["vgg", "alex"]

# For each backbone: indices in `features` of the convolutions as (index, stride, padding), indices of
# the poolings as (kernel, stride), and the convolutions after whose ReLU features are compared.
VGG_CONVS = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
VGG_POOLS = dict.fromkeys((4, 9, 16, 23), (2, 2))
VGG_TAPS = (2, 7, 14, 21, 28)
ALEX_CONVS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
ALEX_POOLS = {2: (3, 2), 5: (3, 2)}
ALEX_TAPS = (0, 3, 6, 8, 10)
# The first features of VGG16 take 256 bytes a pixel.
MOST_PIXELS = 2**22
LINEAR = "lin{}.model.1.weight"
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Perceptual distance between images in [-1, 1]; channels are weighted by `lin*` weights if given, else equally.

    Args:
        state: `features.N.weight` / `.bias` of VGG16 or AlexNet as torchvision names them, and
            optionally `lin0.model.1.weight` to `lin4.model.1.weight` of the LPIPS release (v0.1).

    Attributes:
        learned: whether the `lin*` weights were given; without them, values cannot be compared with publications.

    Raises:
        ValueError: if the state dict is of neither backbone, or its `lin*` weights are incomplete or of the other.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.backbone = backbone_of(state)
        vgg = self.backbone == "vgg"
        self.convs = VGG_CONVS if vgg else ALEX_CONVS
        self.pools = VGG_POOLS if vgg else ALEX_POOLS
        self.taps = VGG_TAPS if vgg else ALEX_TAPS
        for index in self.convs:
            self.register_buffer(f"weight_{index}", state[f"features.{index}.weight"].float())
            self.register_buffer(f"bias_{index}", state[f"features.{index}.bias"].float())
        channels = [state[f"features.{index}.weight"].shape[0] for index in self.taps]
        self.learned = has_linear_weights(state, channels)
        for tap, count in enumerate(channels):
            uniform = torch.full((1, count, 1, 1), 1 / count)
            self.register_buffer(f"lin_{tap}", state.get(LINEAR.format(tap), uniform).float())
        self.register_buffer("mean", torch.tensor(MEAN)[None, :, None, None])
        self.register_buffer("std", torch.tensor(STD)[None, :, None, None])

    @property
    def name(self) -> str:
        """Name of the metric: `lpips_vgg`, or `lpips_vgg_uniform` without the learned weights."""
        return f"lpips_{self.backbone}{'' if self.learned else '_uniform'}"

    @cached_property
    def least_side(self) -> int:
        """Side in pixels of the smallest image that every layer leaves something of."""
        return next(side for side in itertools.count(1) if self.side_after_all(side) > 0)

    def side_after_all(self, side: int) -> int:
        """Side of the last features of an image; 0 if nothing is left."""
        for index in sorted([*self.convs, *self.pools]):
            if index in self.pools:
                kernel, stride, padding = *self.pools[index], 0
            else:
                kernel, (stride, padding) = getattr(self, f"weight_{index}").shape[-1], self.convs[index]
            side = max(0, (side + 2 * padding - kernel) // stride + 1)
        return side

    def features(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Activations at the taps, [B, C, H', W'], each normalized to unit length over channels (0 stays 0)."""
        hidden, taken = (image - self.mean) / self.std, []
        for index in sorted([*self.convs, *self.pools]):
            if index in self.pools:
                kernel, stride = self.pools[index]
                hidden = functional.max_pool2d(hidden, kernel, stride)
                continue
            stride, padding = self.convs[index]
            weight, bias = getattr(self, f"weight_{index}"), getattr(self, f"bias_{index}")
            hidden = functional.relu(functional.conv2d(hidden, weight, bias, stride, padding))
            if index in self.taps:
                # Not hidden / sqrt(sum(hidden^2)): its gradient is NaN where all features of a pixel are 0.
                taken.append(functional.normalize(hidden, dim=1, eps=1e-10))
        return taken

    def forward(self, estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of each pair, at least 0 and 0 for equal images (Zhang et al. 2018, eq. 1).

        NaN for images below `least_side`, and above `MOST_PIXELS`, whose features would fill a machine's memory.
        """
        height, width = estimate.shape[-2:]
        if min(height, width) < self.least_side or height * width > MOST_PIXELS:
            return torch.full_like(estimate[:, 0, 0, 0], torch.nan)
        pairs = zip(self.features(estimate), self.features(normal), strict=True)
        distances = [
            ((one - other).square() * getattr(self, f"lin_{tap}")).sum(dim=1).mean(dim=(1, 2))
            for tap, (one, other) in enumerate(pairs)
        ]
        return torch.stack(distances).sum(dim=0)


def backbone_of(state: dict[str, Tensor]) -> Backbone:
    """Which backbone a torchvision state dict holds, by its first and last convolutions."""
    shape = tuple(state["features.0.weight"].shape) if "features.0.weight" in state else None
    if shape == (64, 3, 3, 3) and "features.28.weight" in state:
        return "vgg"
    if shape == (64, 3, 11, 11) and "features.10.weight" in state:
        return "alex"
    raise ValueError(
        "the LPIPS backbone is neither VGG16 nor AlexNet (features.0.weight has shape "
        f"{shape}); give torchvision's vgg16 or alexnet state dict"
    )


def is_linear(state: dict[str, Tensor]) -> bool:
    """Whether a state dict holds learned weights without a backbone."""
    return LINEAR.format(0) in state and not any(name.startswith("features.") for name in state)


def fits(linear: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether learned weights have the channels of a backbone's taps."""
    taps = VGG_TAPS if backbone_of(state) == "vgg" else ALEX_TAPS
    shapes = [tuple(linear[name].shape) if (name := LINEAR.format(tap)) in linear else None for tap in range(len(taps))]
    return shapes == [(1, state[f"features.{index}.weight"].shape[0], 1, 1) for index in taps]


def has_linear_weights(state: dict[str, Tensor], channels: Sequence[int]) -> bool:
    """Whether the learned weights of all taps are there.

    Raises:
        ValueError: if only some are, or their shapes do not fit the backbone.
    """
    missing = [LINEAR.format(tap) for tap in range(len(channels)) if LINEAR.format(tap) not in state]
    if len(missing) == len(channels):
        return False
    if missing:
        raise ValueError(f"the LPIPS weights lack {', '.join(missing)}; give all of lin0 to lin4, or none")
    for tap, count in enumerate(channels):
        if state[LINEAR.format(tap)].shape != (1, count, 1, 1):
            raise ValueError(
                f"{LINEAR.format(tap)} has shape {tuple(state[LINEAR.format(tap)].shape)}, but the backbone has "
                f"{count} channels there; give the lin weights of the same backbone"
            )
    return True
