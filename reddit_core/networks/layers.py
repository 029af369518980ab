"""Layers that several networks are made of."""

import math
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reddit_core.networks.interface import LocalLayer

Layer = TypeVar("Layer", bound=nn.Module)


class LevelEncoding(LocalLayer):
    """Sinusoidal features of the continuous noise level (Chen et al. 2020, WaveGrad)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_frequencies = channels // 2

    def forward(self, level: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        step = torch.arange(self.num_frequencies, dtype=level.dtype, device=level.device) / self.num_frequencies
        angle = level[:, None] * torch.exp(-math.log(1e4) * step)[None]
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def compiles_for_gpu(features: Tensor) -> bool:
    return torch.compiler.is_compiling() and features.is_cuda


def silu(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """SiLU of features that nothing else holds: in place where no gradient is recorded, which saves memory."""
    return functional.silu(features, inplace=not torch.is_grad_enabled())


def zeroed(layer: Layer) -> Layer:
    """The layer with weights and bias of zero, so that an untrained network's branch adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class GroupNorm(nn.GroupNorm):
    """Keeps its input's dtype under autocast too; its statistics are float32 all the same.

    On a GPU, autocast would run it and the activation after it in float32 and round before the next convolution. That
    saves one rounding and costs passes over the largest tensors: copies were two fifths of a bf16 step's time.
    """

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if compiles_for_gpu(features):
            return self.scaled_and_shifted(features)
        if not torch.is_autocast_enabled(features.device.type):
            return super().forward(features)
        with torch.autocast(features.device.type, enabled=False):
            weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
            return functional.group_norm(features, self.num_groups, weight, bias, self.eps)

    def scaled_and_shifted(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """GroupNorm as one scale and shift per channel, which a compiler fuses and which keeps the memory layout."""
        values = features.float()
        per_channel = torch.var_mean(values, dim=(2, 3), correction=0)
        variance, mean = (moment.reshape(len(features), self.num_groups, -1) for moment in per_channel)
        of_group = variance.mean(2, keepdim=True) + mean.var(2, keepdim=True, correction=0)
        scale = (of_group + self.eps).rsqrt().expand_as(mean).flatten(1) * self.weight
        shift = self.bias - mean.mean(2, keepdim=True).expand_as(mean).flatten(1) * scale
        result: Tensor = values * scale[:, :, None, None] + shift[:, :, None, None]
        return result.to(features.dtype)


class GlobalMean(nn.Module):
    """The mean of each channel over all positions."""

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return features.mean(dim=(2, 3))


class SelfAttention(nn.Module):
    """Single-head attention over all positions; memory is linear in their number through SDPA."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv2d(channels, channels * 3, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        query, key, value = self.qkv(self.norm(features)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = features + self.out(attended[:, 0].transpose(1, 2).reshape(features.shape))
        return result
