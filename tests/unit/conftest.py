"""What the unit tests share: how properties are tested, and what released files hold beside the network."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from reddit_core.networks.sr3_unet import ResBlock, UNet

# The same examples in every run, however slow the machine is.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


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
