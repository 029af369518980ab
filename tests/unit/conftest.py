"""What the unit tests share: figures of the released code, and files as the released code saves them."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reddit_core.unet import ResBlock, UNet

GOLDEN = Path(__file__).parents[1] / "golden" / "released.safetensors"
ReleasedPth = Callable[[dict[str, Tensor]], bytes]


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """The tensors of tests/golden (its README says what each is); do not change them in place."""
    return load_file(GOLDEN)


@pytest.fixture(scope="session")
def save_pth() -> ReleasedPth:
    """A function from any state dict to the bytes of a `.pth`."""

    def save(state: dict[str, Tensor]) -> bytes:
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()

    return save


@pytest.fixture(scope="session")
def unused_tensors() -> Callable[[UNet], dict[str, Tensor]]:
    """A function from a network to what released state dicts hold beside it and what has no effect on its output."""

    def make(unet: UNet) -> dict[str, Tensor]:
        base = unet.config.base_channels
        tensors = {}
        for name, module in unet.named_modules():
            if isinstance(module, ResBlock):
                channels = module.block1.block[3].out_channels
                tensors[f"denoise_fn.{name}.mlp.1.weight"] = torch.rand(channels, base)
                tensors[f"denoise_fn.{name}.mlp.1.bias"] = torch.rand(channels)
        for index, channels in ((0, base), (2, base), (4, 3)):
            tensors[f"denoise_fn.var_conv.{index}.weight"] = torch.rand(channels, base, 3, 3)
            tensors[f"denoise_fn.var_conv.{index}.bias"] = torch.rand(channels)
        return tensors

    return make
