"""Weights as float16 files, and a model card that is made from them and from a report of `jobs/evaluate.py`.

    python tests/benchmarks/ship_weights.py weights --report runs/lol/report --machine "two cores, AVX2" \
        lol-teacher=runs/lol/teacher/teacher.safetensors lol-student-2=runs/lol/students/student-2.safetensors

What the files say of their training data keeps the name of its folder, and loses where that was.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jinja2 import Environment, FileSystemLoader

from pipelines.weights import load_network
from reddit_core.networks import kind_of
from reddit_core.weights import NetworkFile, encode_network


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is shipped, and where to."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the files and of README.md."""
    weights: Annotated[list[str], tyro.conf.Positional]
    """Each as NAME=PATH; the first is the teacher's, the others are students'."""
    report: Path
    """Folder that `jobs/evaluate.py` wrote."""
    machine: str
    """What the weights were trained on, and when."""


def without_folders(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a weights file, with the last part of each absolute path in place of the path."""
    shortened = json.loads(re.sub(r'(?<=[ "])/[^ ",]*/(?=[^ ",/]+)', "", json.dumps(facts)))
    assert isinstance(shortened, dict)
    return shortened


def ship(settings: Settings) -> None:
    files: list[NetworkFile] = []
    shipped = []
    settings.output.mkdir(parents=True, exist_ok=True)
    for text in settings.weights:
        name, _, path = text.partition("=")
        file = load_network(path)
        files.append(replace(file, facts=without_folders(dict(file.facts))))
        data = encode_network(files[-1], torch.float16)
        (settings.output / f"{name}.safetensors").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shipped.append({"name": f"{name}.safetensors", "bytes": len(data), "sha256": digest})
    (settings.output / "README.md").write_text(card(settings, files, shipped))


def card(settings: Settings, files: list[NetworkFile], shipped: list[dict[str, Any]]) -> str:
    """The model card, as Markdown."""
    report = json.loads((settings.report / "report.json").read_text())
    teacher, student = files[0], files[-1]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, autoescape=False
    )
    environment.filters["decimals"] = lambda value, count: "" if value is None else f"{value:.{count}f}"
    return environment.get_template("weights_card.md.jinja").render(
        files=shipped,
        network=kind_of(teacher.network.config),
        parameters=sum(parameter.numel() for parameter in teacher.network.parameters()),
        data=student.facts["pairs"],
        licence=student.facts["licence"],
        brightness=student.brightness,
        teacher=teacher.facts["config"],
        student=student.facts["config"],
        machine=settings.machine,
        rows=report["rows"],
        images=report["images"],
        noise_seeds=f"seed {', '.join(map(str, report['seeds']))}",
    )


if __name__ == "__main__":
    ship(tyro.cli(Settings))
