"""Controls for the shipped weights: what diffusion and distillation buy, on LOL-v1.

    python tests/benchmarks/lol_controls.py PAIRS WEIGHTS OUTPUT [--controls light tuned regressor]

PAIRS as `lol_cpu.sh` ingests them, WEIGHTS the folder of lol-teacher.safetensors and so on. Trains regressors on the
same pairs, measures them in one table with teacher and students (OUTPUT/report), and all of them again on inputs that
are blended 20 % towards the truth, where a method must not break (OUTPUT/report-blended). One Ray does it all. Run
again, it resumes and finishes what is missing.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro

from jobs.cli import Sources, parse
from jobs.train_teacher import JOB
from pipelines import reporting, storage
from pipelines.cluster import start_ray
from pipelines.config.jobs import IngestConfig
from pipelines.config.parts import ComputeConfig, TrackingConfig
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.images import encode_png
from pipelines.pairs.dataset import decode_pair, split_rows
from pipelines.pairs.ingest import ingest
from pipelines.reporting import Report, Row
from pipelines.training.teacher import WEIGHTS, train_teacher

# Of the normal image, in a blended input.
SHARE = 0.2
FIGURES = ("psnr", "psnr_gt_mean", "psnr_given", "ssim_gt_mean")
Control = Literal["light", "tuned", "regressor"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared."""

    pairs: Annotated[str, tyro.conf.Positional]
    """URL of the pair dataset."""
    weights: Annotated[str, tyro.conf.Positional]
    """URL of the folder of the shipped weights."""
    output: Annotated[str, tyro.conf.Positional]
    """URL of trainings, blended pairs and reports."""
    controls: tuple[Control, ...] = ("light", "tuned", "regressor")
    """light: `local-curve`; tuned: the shipped teacher, trained on as a regressor; regressor: its network as a
    regressor from the start, in the teacher's own course (half an hour of a core)."""

    @property
    def teacher(self) -> str:
        return storage.join(self.weights, "lol-teacher.safetensors")


def train(settings: Settings, name: str, flags: str) -> str:
    """Trains a regressor into OUTPUT/NAME with preset lol-cpu, on one thread; returns the URL of its weights."""
    output = storage.join(settings.output, name)
    words = ["--pairs", settings.pairs, "--output", output, "--levels", "noisiest", "--validation-steps", "1"]
    words += ["--compute.threads", "1", "--tracking.no-enabled", *flags.split()]
    reporting.show(train_teacher(parse(JOB, Sources(preset="lol-cpu"), words)))
    return storage.join(output, WEIGHTS)


def train_control(settings: Settings, control: Control) -> str:
    if control == "light":
        return train(settings, "light", "--network local-curve --optim.steps 2000 --optim.learning-rate 2e-3")
    if control == "tuned":
        course = "--crop 160 --optim.steps 800 --optim.learning-rate 5e-4"
        return train(settings, "tuned", f"--init {settings.teacher} {course}")
    # The course of the teacher (lol_cpu.sh) but for its last part, with rollouts, and a shorter second one.
    first = train(settings, "regressor-128", "")
    course = "--crop 160 --optim.steps 2500 --optim.learning-rate 7e-4"
    return train(settings, "regressor", f"--init {first} {course}")


def blended_pairs(settings: Settings) -> str:
    """The validation pairs with low images `(1 - SHARE) low + SHARE normal`: PNG files, ingested; returns their URL."""
    folder = storage.join(settings.output, "blended")
    table, output = storage.join(folder, "pairs.csv"), storage.join(folder, "pairs")
    if not storage.exists(table):  # it is written last
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("pair_id", "low", "normal", "split"))
        for index, row in enumerate(split_rows(settings.pairs, "validation")):
            low, normal = decode_pair(row)
            blended = np.rint((1 - SHARE) * low + SHARE * normal).astype(np.uint8)
            names = [f"{side}/{index:04d}.png" for side in ("low", "normal")]
            for name, image in zip(names, (blended, normal), strict=True):
                storage.write_bytes(storage.join(folder, name), encode_png(image))
            writer.writerow((row["pair_id"], *names, "validation"))
        storage.write_bytes(table, text.getvalue().encode())
    ingest(IngestConfig(layout="table", source=table, output=output))
    return output


def judge(settings: Settings, name: str, pairs: str, controls: Sequence[str]) -> Sequence[Row]:
    """The rows of the report on whole validation images, which is written to OUTPUT/NAME."""
    students = [
        f"student:{steps}={storage.join(settings.weights, f'lol-student-{steps}.safetensors')}" for steps in (2, 1)
    ]
    report = evaluate(
        EvaluateConfig(
            pairs=pairs,
            output=storage.join(settings.output, name),
            weights=(f"teacher:16={settings.teacher}", f"teacher:2={settings.teacher}", *students, *controls),
            compute=ComputeConfig(threads=1),
            tracking=TrackingConfig(enabled=False),
        )
    )
    reporting.show(report)
    return report.rows


def changes(plain: Sequence[Row], blended: Sequence[Row]) -> list[Row]:
    """By how much the figures of each method change with the blended inputs."""
    return [
        {
            "method": before["method"],
            "steps": before["steps"],
            **{name: after[name] - before[name] for name in FIGURES if before[name] is not None},
        }
        for before, after in zip(plain, blended, strict=True)
    ]


def main(settings: Settings) -> None:
    start_ray()
    controls = [f"{control}:1={train_control(settings, control)}" for control in settings.controls]
    plain = judge(settings, "report", settings.pairs, controls)
    blended = judge(settings, "report-blended", blended_pairs(settings), controls)
    reporting.show(Report(title="Blended inputs: change of each figure", rows=changes(plain, blended)))


if __name__ == "__main__":
    main(tyro.cli(Settings))
