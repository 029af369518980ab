"""Presets as data: for each job, names and the dotted settings that each stands for.

`demo` is for two CPU cores and minutes, `lol-cpu` for two CPU cores and at most three hours, `lol` for one GPU and 25
minutes: all with the default network. `paper` is the released network on GPUs.
"""

from collections.abc import Mapping
from typing import Any

import torch

Settings = Mapping[str, Any]

# The fastest precision of this CPU. Without instructions for bf16, emulating it takes 14 times as long as fp32.
INSTRUCTIONS = torch.cpu.get_capabilities()
CPU_PRECISION = "bf16" if INSTRUCTIONS.get("amx_bf16") or INSTRUCTIONS.get("avx512_bf16") else "fp32"

# Few scenes: their crops are made brighter and darker, and SSIM beside the squared error keeps structure.
TEACHER: Settings = {"brightness_jitter": 0.2, "ssim": 0.3, "optim.weight_decay": 0.01, "optim.ema_decay": 0.998}
SMALL_FILM: Settings = {"film.channels": (16, 32, 64), "film.embedding_channels": 64}
WIDE_FILM: Settings = {"film.channels": (64, 128, 256, 256), "film.num_res_blocks": 2, "film.embedding_channels": 256}
DEMO_SEGMENT: Settings = {"segment.crop": 64, "segment.crops": 16, "segment.brightness_jitter": 0.2}
LOL_CPU_SEGMENT: Settings = {"segment.crop": 128, "segment.crops": 4, "segment.brightness_jitter": 0.2}
LOL_SEGMENT: Settings = {"segment.crop": 128, "segment.crops": 64, "segment.brightness_jitter": 0.2}
PAPER_UNET: Settings = {
    "network": "sr3-unet",
    "unet.base_channels": 64,
    "unet.channel_mults": (1, 1, 2, 2, 4),
    "unet.attention_levels": (3,),  # 16 x 16 of the 128 pixels it was made for
    "unet.num_res_blocks": 2,
}

DISTILL: Mapping[str, Settings] = {
    "demo": {
        **DEMO_SEGMENT,
        "loss.ssim": 0.3,
        "optim.steps": 80,
        "optim.batch_size": 8,
        "optim.learning_rate": 4e-4,
        "optim.warmup_steps": 10,
        "optim.ema_decay": 0.98,
        "optim.precision": CPU_PRECISION,
        "checkpoint.every": 80,
        "checkpoint.validate_every": 80,
    },
    "lol-cpu": {
        **LOL_CPU_SEGMENT,
        "loss.ssim": 0.3,
        "optim.steps": 150,
        "optim.batch_size": 8,
        "optim.learning_rate": 4e-4,
        "optim.warmup_steps": 10,
        "optim.ema_decay": 0.99,
        "optim.precision": CPU_PRECISION,
        "checkpoint.every": 75,
        "checkpoint.validate_every": 150,
    },
    "lol": {
        **LOL_SEGMENT,
        "loss.ssim": 0.3,
        "optim.steps": 4000,
        "optim.batch_size": 32,
        "optim.learning_rate": 2e-4,
        "optim.ema_decay": 0.999,
        "optim.precision": "bf16",
        "optim.compile": True,
        "checkpoint.validate_every": 2000,
    },
}


def nested(part: str, presets: Mapping[str, Settings]) -> Mapping[str, Settings]:
    """The presets of a job that has another job's config as a part."""
    return {name: {f"{part}.{key}": value for key, value in settings.items()} for name, settings in presets.items()}


PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "train_teacher": {
        "demo": {
            **TEACHER,
            **SMALL_FILM,
            "crop": 64,
            "crops_per_image": 16,
            "optim.steps": 500,
            "optim.batch_size": 8,
            "optim.learning_rate": 2e-3,
            "optim.warmup_steps": 20,
            "optim.ema_decay": 0.99,
            "optim.precision": CPU_PRECISION,
            "checkpoint.every": 250,
            "checkpoint.validate_every": 500,
        },
        "lol-cpu": {
            **TEACHER,
            "crop": 128,
            "crops_per_image": 4,
            "optim.steps": 4000,
            "optim.batch_size": 4,
            "optim.learning_rate": 1e-3,
            "optim.warmup_steps": 50,
            "optim.precision": CPU_PRECISION,
            "checkpoint.every": 250,
            "checkpoint.validate_every": 1000,
            "validation_steps": 2,
        },
        "lol": {
            **TEACHER,
            **WIDE_FILM,
            "crop": 128,
            "optim.steps": 20_000,
            "optim.batch_size": 32,
            "optim.learning_rate": 5e-4,
            "optim.ema_decay": 0.999,
            "optim.precision": "bf16",
            "optim.compile": True,
            "checkpoint.validate_every": 4000,
            "validation_steps": 4,
        },
        "paper": {**PAPER_UNET, "crop": 96, "optim.steps": 500_000, "optim.precision": "bf16"},
    },
    "precompute": {
        "demo": {**DEMO_SEGMENT, "precision": CPU_PRECISION, "compute.threads": 2},
        "lol-cpu": {**LOL_CPU_SEGMENT, "precision": CPU_PRECISION, "compute.threads": 2},
        "lol": {**LOL_SEGMENT, "precision": "bf16", "batch_size": 64},
    },
    "distill": DISTILL,
    # The students of these jobs are set as those of distill.
    **{job: nested("distill", DISTILL) for job in ("tune", "experiments")},
}
