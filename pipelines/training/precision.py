"""Compiles a network for training, and runs it in the chosen precision."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines import failures
from pipelines.training.objective import Forward
from reddit_core import precision
from reddit_core.networks import Network
from reddit_core.precision import Precision


def compiled(network: Network, device: torch.device) -> Forward:
    """The network through torch.compile; on a GPU with a CUDA graph for its forward and one for its backward.

    A step's two thousand small kernels take a CPU longer to launch, one by one, than a GPU to run.
    """
    graphs = "reduce-overhead" if device.type == "cuda" else None
    forward: Forward = torch.compile(network, mode=graphs)
    return forward


def in_precision(network: Forward, device: torch.device, chosen: Precision) -> Forward:
    """The network as objectives call it: float32 in and out, in the chosen precision within."""

    def forward(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Tensor:
        with precision.autocast(device, chosen):
            return network(z.float(), sqrt_alpha_bar.float(), low=low.float(), gain=gain).float()

    return forward


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
