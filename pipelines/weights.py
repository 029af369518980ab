"""Weights at URLs: `reddit_core.weights` over `storage`."""

import hashlib
import io
import pickle
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipelines import storage
from reddit_core.lpips import Lpips, fits, is_linear
from reddit_core.precision import Precision, lay_out_for_inference
from reddit_core.student import Student
from reddit_core.weights import NetworkFile, decode_network, encode_network, is_pth


def load_network(url: str) -> NetworkFile:
    """Reads weights of this project, or a released `.pth` whose GroupNorm layers have 32 groups.

    Raises:
        ValueError: naming the URL, if there is nothing there or it holds no network that can be read.
    """
    return load_hashed_network(url)[0]


def load_hashed_network(url: str, norm_groups: int = 32) -> tuple[NetworkFile, str]:
    """As `load_network`, with the SHA-256 of the bytes that were read.

    `norm_groups` applies to a released `.pth` only, which does not record the number of groups (`jobs/convert.py`).
    """
    try:
        data = storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there are no weights at {url}; give the URL of a .safetensors or released .pth") from None
    try:
        return decode_network(data, norm_groups), hashlib.sha256(data).hexdigest()
    except (ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        if "norm_groups" in reason and is_pth(data):
            reason = f"{reason}: jobs/convert.py --norm-groups N reads a .pth with another number of groups"
        raise ValueError(f"the weights at {url} cannot be used: {reason}") from None


def load_for_inference(url: str, device: torch.device | str, precision: Precision) -> NetworkFile:
    """As `load_network`, on a device, and laid out there for inference."""
    file = load_network(url)
    lay_out_for_inference(file.network.to(device), precision)
    return file


def load_student(
    url: str, device: torch.device | str = "cpu", precision: Precision = "fp32", *, steps: int = 0
) -> Student:
    """A student ready to use: `load_student("student-2.safetensors").enhance(pixels)`.

    Args:
        url: of weights of this project, or a released `.pth`.
        device: where the network runs.
        precision: `fp32`, or `bf16` for autocast.
        steps: sampling steps; 0 takes the number that the weights were distilled for.

    Raises:
        ValueError: naming the URL, if there are no weights that can be used.
    """
    return Student(load_network(url), device=device, precision=precision, steps=steps)


def save_network(url: str, file: NetworkFile, dtype: torch.dtype = torch.float32) -> None:
    """Writes safetensors of this project, atomically; the same bytes for the same weights."""
    storage.write_bytes(url, encode_network(file, dtype))


def read_tensors(url: str) -> dict[str, Tensor]:
    """A state dict from a .safetensors or, without unpickling code, a .pth file.

    Raises:
        ValueError: if there is nothing at the URL, or no state dict.
    """
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise ValueError(f"there is no state dict at {url}; give the URL of a .safetensors or .pth file") from None
    try:
        if is_pth(data):
            state: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return state
        return dict(load(data))
    except (SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the state dict at {url} cannot be read ({reason[:200]}); give another file") from None


def load_lpips(*urls: str) -> Lpips:
    """Loads LPIPS from the files of a backbone and, if wanted, its learned weights, without unpickling code.

    Raises:
        ValueError: if they hold no backbone that can be used, or two.
    """
    found = load_distances(urls)
    if len(found) != 1:
        raise ValueError(f"lpips holds {', '.join(found)}, but one backbone is used; leave the others out")
    return next(iter(found.values()))


def load_distances(urls: Sequence[str]) -> dict[str, Lpips]:
    """LPIPS over each backbone, by the name of its metric.

    Files of learned weights alone, as the `lpips` package has them, are joined with the backbone whose channels fit.

    Raises:
        ValueError: if a file cannot be used, two hold the same backbone, or learned weights are left over.
    """
    states = [(url, read_tensors(url)) for url in urls]
    backbones = [(url, state) for url, state in states if not is_linear(state)]
    linear = {url: state for url, state in states if is_linear(state)}
    distances: dict[str, Lpips] = {}
    for url, state in backbones:
        learned = next((one for one, weights in linear.items() if fits(weights, state)), None)
        try:
            distance = Lpips({**state, **(linear[learned] if learned else {})})
        except KeyError as error:
            raise ValueError(f"the state dict at {url} lacks {error}; give a whole VGG16's or AlexNet's") from None
        if any(distance.backbone == other.backbone for other in distances.values()):
            raise ValueError(f"lpips holds a second {distance.backbone} backbone, {url}; give one file for each")
        distances[distance.name] = distance
        if learned:
            del linear[learned]
    for url in linear:
        raise ValueError(f"the LPIPS weights at {url} fit none of the backbones; give the state dict of theirs too")
    return distances
