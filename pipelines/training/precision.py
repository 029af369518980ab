"""Compiles a network for training, and runs it in the chosen precision."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines import failures
from pipelines.training.objective import Network
from reddit_core.networks.sr3_unet import UNet


def compiled(unet: UNet, device: torch.device) -> Network:
    """The network through torch.compile; on a GPU with a CUDA graph for its forward and one for its backward.

    A step's two thousand small kernels take a CPU longer to launch, one by one, than a GPU to run.
    """
    graphs = "reduce-overhead" if device.type == "cuda" else None
    network: Network = torch.compile(unet, mode=graphs)
    return network


def autocast(network: Network, device: torch.device, *, enabled: bool) -> Network:
    """The network as objectives call it: float32 in and out, bf16 within if enabled."""

    def call(z: Tensor, low: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            return network(z.float(), low.float(), sqrt_alpha_bar.float()).float()

    return call


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Context manager around the steps of a compiled network, the first of which compiles it.

    Raises:
        ValueError: if torch.compile's backend fails, for which a missing C++ compiler is the usual reason.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # noqa: PLC0415 - takes more than a second

    try:
        yield
    except BackendCompilerFailed as error:
        raise ValueError(
            f"the network could not be compiled ({failures.one_line(error)}): --optim.compile needs a C++ compiler on "
            "every node that trains; install one, or leave it out"
        ) from error
