"""Presets as data: for each job, names and the dotted settings that each stands for.

`lol-cpu` is for two CPU cores and about an hour; `paper` is the released network on GPUs.
"""

from collections.abc import Mapping
from typing import Any

import torch

Settings = Mapping[str, Any]

# The fastest precision of this CPU. Without instructions for bf16, emulating it takes 14 times as long as fp32.
INSTRUCTIONS = torch.cpu.get_capabilities()
CPU_PRECISION = "bf16" if INSTRUCTIONS.get("amx_bf16") or INSTRUCTIONS.get("avx512_bf16") else "fp32"

SMALL_UNET: Settings = {
    "unet.base_channels": 24,
    "unet.channel_mults": (1, 2, 2, 2),
    "unet.num_res_blocks": 1,
    "unet.norm_groups": 8,
}
# Narrow at full resolution and wide below: five levels cover most of a scene, in two fifths of the time of 32-64-64-64.
# With fewer than 300 scenes a network overfits to their brightness; dropout reduces that.
LOL_CPU_UNET: Settings = {
    "unet.base_channels": 16,
    "unet.channel_mults": (1, 2, 4, 4, 4),
    "unet.num_res_blocks": 1,
    "unet.norm_groups": 8,
    "unet.dropout": 0.1,
}
# Whole scenes reduced to a fifth nearly fit a crop, so that their brightness can be learned from small crops.
LOL_CPU_SEGMENT: Settings = {"segment.crop": 64, "segment.crops": 4, "segment.min_scale": 0.2}
PAPER_UNET: Settings = {
    "unet.base_channels": 64,
    "unet.channel_mults": (1, 1, 2, 2, 4),
    "unet.attention_levels": (3,),  # 16 x 16 of the 128 pixels it was made for
    "unet.num_res_blocks": 2,
}

DISTILL: Mapping[str, Settings] = {
    "demo": {
        "segment.crop": 64,
        "segment.crops": 16,
        "optim.steps": 80,
        "optim.batch_size": 8,
        "optim.learning_rate": 4e-4,
        "optim.warmup_steps": 10,
        "optim.precision": CPU_PRECISION,
        "checkpoint.every": 40,
        "checkpoint.validate_every": 80,
    },
    "lol-cpu": {
        **LOL_CPU_SEGMENT,
        "optim.steps": 600,
        "optim.batch_size": 4,
        "optim.learning_rate": 1e-3,
        "optim.warmup_steps": 10,
        "optim.ema_decay": 0.99,
        "optim.precision": CPU_PRECISION,
        "checkpoint.every": 300,
        "checkpoint.validate_every": 300,
        "checkpoint.validation_images": 19,
    },
}


def nested(part: str, presets: Mapping[str, Settings]) -> Mapping[str, Settings]:
    """The presets of a job that has another job's config as a part."""
    return {name: {f"{part}.{key}": value for key, value in settings.items()} for name, settings in presets.items()}


PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "train_teacher": {
        "demo": {
            **SMALL_UNET,
            "crop": 64,
            "optim.steps": 3000,
            "optim.batch_size": 8,
            "optim.learning_rate": 8e-4,
            "optim.precision": CPU_PRECISION,
            "checkpoint.every": 500,
            "checkpoint.validate_every": 1000,
        },
        "lol-cpu": {
            **LOL_CPU_UNET,
            "crop": 64,
            "min_scale": 0.2,
            "optim.steps": 4000,
            "optim.batch_size": 8,
            "optim.learning_rate": 8e-4,
            "optim.precision": CPU_PRECISION,
            "checkpoint.every": 500,
            "checkpoint.validate_every": 1000,
        },
        "paper": {**PAPER_UNET, "crop": 96, "optim.steps": 500_000, "optim.precision": "bf16"},
    },
    "precompute": {
        "demo": {"segment.crop": 64, "segment.crops": 16, "precision": CPU_PRECISION, "compute.threads": 2},
        "lol-cpu": {**LOL_CPU_SEGMENT, "precision": CPU_PRECISION, "compute.threads": 2},
    },
    "distill": DISTILL,
    # The students of these jobs are set as those of distill.
    **{job: nested("distill", DISTILL) for job in ("tune", "experiments")},
}
