"""Weights as float16, in parts that fit where files have a greatest size.

    python tests/benchmarks/pack_weights.py OUTPUT WEIGHTS [WEIGHTS ...]

`cat NAME.f16.safetensors.part* > NAME.f16.safetensors` puts one together again, and every job reads it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import torch
import tyro

from pipelines import storage
from pipelines.reporting import Report, show
from pipelines.weights import load_network
from reddit_core.weights import encode_network


@dataclass(frozen=True)
class Settings:
    """What is packed, and where to."""

    output: Annotated[str, tyro.conf.Positional]
    """URL of a folder."""
    weights: Annotated[tuple[str, ...], tyro.conf.Positional]
    """URLs of weights; each is called after its own folder and file."""
    mebibytes: float = 15.0
    """Most of one part."""


def pack(settings: Settings) -> Report:
    rows, most = [], int(settings.mebibytes * 2**20)
    for url in settings.weights:
        path = PurePosixPath(url)
        name = f"{path.parent.name}-{path.stem}.f16.safetensors"
        data = encode_network(load_network(url), torch.float16)
        parts = [data[start : start + most] for start in range(0, len(data), most)]
        for number, part in enumerate(parts):
            storage.write_bytes(storage.join(settings.output, f"{name}.part{number:02d}"), part)
        rows.append(
            {"weights": name, "bytes": len(data), "parts": len(parts), "sha256": hashlib.sha256(data).hexdigest()}
        )
    return Report(title=f"Weights in parts: {settings.output}", rows=rows)


if __name__ == "__main__":
    show(pack(tyro.cli(Settings)))
