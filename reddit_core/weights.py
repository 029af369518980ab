"""Weights as bytes: safetensors that describe their network, and released `.pth` state dicts."""

import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reddit_core.networks import Network, build, kind_of, read_config
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule

FORMAT = "reddit-network-1"
# The format of files written before there was more than one kind of network.
UNET_FORMAT, UNET_KIND = "reddit-unet-1", "sr3-unet"
RELEASED_PREFIX = "denoise_fn."
HEADER_ALIGNMENT = 8
# Tensors of the released state dicts without effect on the output: a second embedding of the level in each residual
# block, and a variance head.
RELEASED_UNUSED = re.compile(r"(^var_conv\.|\.res_block\.mlp\.)")


@dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A network, its noise schedule, and free-form facts about its training.

    Attributes:
        network: with its weights.
        schedule: the noise schedule that it was trained with.
        brightness: mean luma of the normal-light images that it was trained on, in [0, 1]: what its results have where
            nobody asks for another; None if it is not told the exposure gain.
        contrast: weights that predict the standard deviation of their luma (`tone.fit_contrast`); None leaves the
            contrast of results to the network.
        facts: about its training.
    """

    network: Network
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    brightness: float | None = None
    contrast: tuple[float, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Sampling steps that the weights were distilled for; 0 if they do not say."""
        return int(self.facts.get("num_steps", 0))


def encode_network(file: NetworkFile, dtype: torch.dtype = torch.float32) -> bytes:
    """Safetensors bytes, the same for the same weights; kind, config, schedule and facts in the metadata."""
    config = file.network.config
    metadata = {
        "format": FORMAT,
        "network": json.dumps({"kind": kind_of(config), "config": asdict(config)}, sort_keys=True),
        "schedule": json.dumps(asdict(file.schedule), sort_keys=True),
        "facts": json.dumps(dict(file.facts), sort_keys=True),
    }
    if file.brightness is not None:
        metadata["brightness"] = json.dumps(file.brightness)
    if file.contrast is not None:
        metadata["contrast"] = json.dumps(file.contrast)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in file.network.state_dict().items()}
    return _with_sorted_header(save(tensors, metadata))


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with a header in fixed order; the library writes metadata in a random one."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def decode_network(data: bytes, norm_groups: int = 32) -> NetworkFile:
    """Reads any format; `norm_groups` applies to a released `.pth` only, which does not record it.

    Raises:
        ValueError: if the bytes are neither, or the tensors do not fit the network they describe.
    """
    if is_pth(data):
        return _decode_released(_unpickle(data), norm_groups)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(
            f"not a weights file ({error}); give a .safetensors of this project or a released .pth"
        ) from None
    metadata = read_metadata(data)
    network = _describe_network(metadata)
    missing, unexpected = _load(network, {name: value.float() for name, value in tensors.items()})
    if missing or unexpected:
        raise ValueError(
            _misfit(missing, unexpected, "the file was altered; write it again with train_teacher or distill")
        )
    schedule = NoiseSchedule(**json.loads(metadata["schedule"]))
    brightness, contrast = (json.loads(metadata.get(name, "null")) for name in ("brightness", "contrast"))
    return NetworkFile(
        network=network.eval(),
        schedule=schedule,
        brightness=brightness,
        contrast=None if contrast is None else tuple(contrast),
        facts=json.loads(metadata["facts"]),
    )


def _describe_network(metadata: Mapping[str, str]) -> Network:
    """The network that a file's metadata describe, with its initial weights."""
    if metadata.get("format") == UNET_FORMAT:
        kind, values = UNET_KIND, json.loads(metadata["unet"])
    elif metadata.get("format") == FORMAT:
        description = json.loads(metadata["network"])
        kind, values = description["kind"], description["config"]
    else:
        raise ValueError(
            f"this safetensors file says format {metadata.get('format')!r}, but a network of this project says "
            f"{FORMAT!r} or {UNET_FORMAT!r}; give a file that train_teacher or distill wrote, or a released .pth"
        )
    return build(read_config(kind, values))


def is_pth(data: bytes) -> bool:
    """Whether bytes are torch's zip format, or the bare pickle before it, and not safetensors.

    Safetensors begin with the length of their JSON header, whose bytes can look like either.
    """
    return data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80")


def read_metadata(data: bytes) -> dict[str, str]:
    """The string metadata of safetensors bytes (its JSON header's `__metadata__`)."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(data[8 : 8 + length])
    return header.get("__metadata__", {})


def _unpickle(data: bytes) -> Mapping[str, Any]:
    """A `.pth` state dict; `weights_only` refuses any pickle that would run code."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the .pth file cannot be read ({reason}); give a whole one that holds tensors only") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"the .pth file holds a {type(state).__name__}, but a state dict is needed; save one")
    return state


def _load(network: Network, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Loads the tensors whose names match; returns the missing and the unknown names."""
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # a shape differs
        raise ValueError(
            f"the tensors do not fit the network they describe ({' '.join(str(error).split())}); "
            "give a file that nobody altered"
        ) from None
    return list(missing), list(unexpected)


def _misfit(missing: list[str], unknown: list[str], remedy: str) -> str:
    return (
        f"the tensors do not fit the network they describe: {len(missing)} are missing {missing[:3]}, "
        f"{len(unknown)} are unknown {unknown[:3]}; {remedy}"
    )


def _decode_released(state: Mapping[str, Any], norm_groups: int) -> NetworkFile:
    tensors = {
        name.removeprefix(RELEASED_PREFIX): value for name, value in state.items() if name.startswith(RELEASED_PREFIX)
    }
    if "downs.0.weight" not in tensors:
        raise ValueError(
            f"the state dict holds no {RELEASED_PREFIX}downs.0.weight, so it is not a released ReDDiT or SR3 "
            "generator; give the *_gen.pth file"
        )
    network = UNet(infer_config(tensors, norm_groups))
    missing, unexpected = _load(network, tensors)
    foreign = [name for name in unexpected if not RELEASED_UNUSED.search(name)]
    if missing or foreign:
        raise ValueError(_misfit(missing, foreign, "of .pth files, only the released SR3 U-Net is read"))
    betas = state.get("betas")
    if betas is None:
        return NetworkFile(network=network.eval())
    return NetworkFile(network=network.eval(), schedule=_schedule_of(betas))


def _schedule_of(betas: Tensor) -> NoiseSchedule:
    """The schedule whose table these betas give; float32 rounding is taken off the two ends."""
    schedule = NoiseSchedule(
        num_steps=len(betas) - 1, beta_start=round(float(betas[0]), 7), beta_end=round(float(betas[-1]), 7)
    )
    linear = torch.linspace(schedule.beta_start, schedule.beta_end, len(betas), dtype=torch.float64)
    if not torch.allclose(betas.double(), linear, rtol=1e-4, atol=0):
        raise ValueError(
            f"the betas of the state dict run from {betas[0]:.3g} to {betas[-1]:.3g}, but not along a line; "
            "only weights of a linear noise schedule can be used"
        )
    return schedule


def infer_config(tensors: Mapping[str, Tensor], norm_groups: int) -> UNetConfig:
    """The shape of a released U-Net from the names and shapes of its tensors (without `denoise_fn.`)."""
    base = tensors["downs.0.weight"].shape[0]
    mults: list[int] = []
    attention: list[int] = []
    blocks_in_level, blocks_per_level = 0, 0
    for index in range(1, 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("downs."))):
        if f"downs.{index}.conv.weight" in tensors:  # a Downsample ends the level
            blocks_per_level, blocks_in_level = max(blocks_per_level, blocks_in_level), 0
            continue
        if blocks_in_level == 0:
            mults.append(tensors[f"downs.{index}.res_block.block1.block.3.weight"].shape[0] // base)
            if f"downs.{index}.attn.qkv.weight" in tensors:
                attention.append(len(mults) - 1)
        blocks_in_level += 1
    return UNetConfig(
        base_channels=base,
        channel_mults=tuple(mults),
        attention_levels=tuple(attention),
        num_res_blocks=max(blocks_per_level, blocks_in_level),
        norm_groups=norm_groups,
        prediction="eps",
    )
