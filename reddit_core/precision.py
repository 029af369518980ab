"""The numeric precision that networks run in: float32, or bfloat16 within autocast."""

from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products and convolutions run in bfloat16 if asked for; for fp32 it changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def lay_out_for_inference(network: nn.Module, precision: Precision) -> None:
    """Stores convolution weights channels-last if that speeds up sampling: in bf16 on a CPU. Otherwise does nothing.

    Sampling in bf16 on a CPU then takes 0.55 of the time (records' crops have this layout already). In float32 it would
    gain a tenth there, and round more coarsely (1.6e-5 against 1e-6, golden crop). On a GPU a forward takes 1.25 times
    as long with it, although tensor cores want it: PyTorch's GroupNorm there copies to the other layout and back.
    """
    if precision != "bf16":
        return
    for parameter in network.parameters():
        if parameter.ndim == 4 and not parameter.is_cuda:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
