"""U-Net weights as bytes: our safetensors with the network's config inside, and released `.pth` state dicts."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reddit_core.schedule import NoiseSchedule
from reddit_core.unet import UNet, UNetConfig

FORMAT = "reddit-unet-1"
RELEASED_PREFIX = "denoise_fn."
# In the released state dicts, but without effect on the output: a second embedding of the level in each
# residual block, and a variance head.
RELEASED_UNUSED = re.compile(r"(^var_conv\.|\.res_block\.mlp\.)")


@dataclass(frozen=True, kw_only=True)
class UNetFile:
    """A network with what is needed to use it: its schedule and free-form facts about its making."""

    unet: UNet
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    facts: Mapping[str, Any] = field(default_factory=dict)


def encode_unet(file: UNetFile, dtype: torch.dtype = torch.float32) -> bytes:
    """Safetensors bytes, the same for the same weights; config, schedule and facts in the metadata."""
    metadata = {
        "format": FORMAT,
        "unet": json.dumps(asdict(file.unet.config), sort_keys=True),
        "schedule": json.dumps(asdict(file.schedule), sort_keys=True),
        "facts": json.dumps(dict(file.facts), sort_keys=True),
    }
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in file.unet.state_dict().items()}
    return bytes(save(tensors, metadata))


def decode_unet(data: bytes, norm_groups: int = 32) -> UNetFile:
    """Reads either format; `norm_groups` is used only where the file does not say (released `.pth`).

    Raises:
        ValueError: if the bytes are neither, or the tensors do not fit the network they describe.
    """
    if data[:2] == b"PK" or data[:1] == b"\x80":
        return _decode_released(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), norm_groups)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(
            f"not a weights file ({error}); give a .safetensors of this project or a released .pth"
        ) from None
    metadata = read_metadata(data)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"this safetensors file says format {metadata.get('format')!r}, but a U-Net of this project says "
            f"{FORMAT!r}; give a file that train_teacher or distill wrote, or a released .pth"
        )
    config = json.loads(metadata["unet"])
    for name in ("channel_mults", "attention_levels"):
        config[name] = tuple(config[name])
    unet = UNet(UNetConfig(**config))
    unet.load_state_dict({name: value.float() for name, value in tensors.items()})
    schedule = NoiseSchedule(**json.loads(metadata["schedule"]))
    return UNetFile(unet=unet.eval(), schedule=schedule, facts=json.loads(metadata["facts"]))


def read_metadata(data: bytes) -> dict[str, str]:
    """The string metadata of safetensors bytes (its JSON header's `__metadata__`)."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(data[8 : 8 + length])
    return header.get("__metadata__", {})


def _decode_released(state: Mapping[str, Tensor], norm_groups: int) -> UNetFile:
    network = {
        name.removeprefix(RELEASED_PREFIX): value for name, value in state.items() if name.startswith(RELEASED_PREFIX)
    }
    if "downs.0.weight" not in network:
        raise ValueError(
            f"the state dict holds no {RELEASED_PREFIX}downs.0.weight, so it is not a released ReDDiT or SR3 "
            "generator; give the *_gen.pth file"
        )
    unet = UNet(infer_config(network, norm_groups))
    missing, unexpected = unet.load_state_dict(network, strict=False)
    foreign = [name for name in unexpected if not RELEASED_UNUSED.search(name)]
    if missing or foreign:
        raise ValueError(
            f"the state dict does not fit the network inferred from it: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(foreign)} unknown {foreign[:3]}; only the released SR3 U-Net is read"
        )
    betas = state.get("betas")
    if betas is None:
        return UNetFile(unet=unet.eval())
    schedule = NoiseSchedule(
        num_steps=len(betas) - 1, beta_start=round(float(betas[0]), 7), beta_end=round(float(betas[-1]), 7)
    )
    return UNetFile(unet=unet.eval(), schedule=schedule)


def infer_config(network: Mapping[str, Tensor], norm_groups: int) -> UNetConfig:
    """The shape of a released U-Net from the names and shapes of its tensors."""
    base = network["downs.0.weight"].shape[0]
    mults: list[int] = []
    attention: list[int] = []
    blocks_in_level, blocks_per_level = 0, 0
    for index in range(1, 1 + max(int(name.split(".")[1]) for name in network if name.startswith("downs."))):
        if f"downs.{index}.conv.weight" in network:  # a Downsample ends the level
            blocks_per_level, blocks_in_level = max(blocks_per_level, blocks_in_level), 0
            continue
        if blocks_in_level == 0:
            mults.append(network[f"downs.{index}.res_block.block1.block.3.weight"].shape[0] // base)
            if f"downs.{index}.attn.qkv.weight" in network:
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
