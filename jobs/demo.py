"""Runs the whole pipeline on a few photographs, by the command lines of the jobs."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from jobs import distill, evaluate, ingest, precompute, train_teacher
from jobs.cli import Job, main
from jobs.demo_photographs import write_photographs
from pipelines import reporting, storage
from pipelines.console import make_console
from pipelines.reporting import Row
from pipelines.training.teacher import WEIGHTS

STEPS = (8, 4, 2)
# Photons are few: a white pixel has 2,000 electrons at the normal exposure, so that there is noise to remove.
FULL_WELL = 2000
# What the 2-step student may lose against its teacher at 16 steps, with GT-mean.
MAY_LOSE = {"psnr_gt_mean": 0.3, "ssim_gt_mean": 0.02}
REASON = "training of two minutes is what fits; more steps (--optim.steps) come closer"


def commands(output: str) -> Iterator[tuple[Job[Any], str]]:
    """Yields the jobs of the demo in order, each with its flags."""
    pairs, cache, experiment = f"{output}/pairs", f"{output}/cache", "--tracking.experiment demo"
    photographs, teacher = f"{output}/photographs", f"{output}/teacher/{WEIGHTS}"
    yield (
        ingest.JOB,
        f"--layout degrade --source {photographs} --splits {photographs}-splits.csv --output {pairs} "
        f"--degrade.full-well {FULL_WELL}",
    )
    yield train_teacher.JOB, f"--preset demo --pairs {pairs} --output {output}/teacher {experiment}"
    yield precompute.JOB, f"--preset demo --pairs {pairs} --teacher {teacher} --output {cache} --stages 16,8,4"
    inputs = f"--preset demo --cache {cache} --teacher {teacher} --pairs {pairs} {experiment}"
    yield distill.JOB, f"{inputs} --output {output}/distill --stages 16,8,4"
    students = " ".join(f"student:{steps}={output}/distill/student-{steps}.safetensors" for steps in STEPS)
    yield (
        evaluate.JOB,
        f"--pairs {pairs} --output {output} {experiment} --weights teacher:16={teacher} teacher:2={teacher} "
        f"{students} --shown input:0 teacher:16 student:2",
    )


def verdict(rows: Sequence[Row]) -> list[str]:
    """Compares the 2-step student with the input and with its teacher: one line for each aim, with the reason if it is
    missed."""
    found = {(row["method"], row["steps"]): row for row in rows}
    student, teacher, before = found["student", 2], found["teacher", 16], found["input", 0]
    above = {name: student[name] - before[name] for name in MAY_LOSE}
    lost = {name: teacher[name] - student[name] for name in MAY_LOSE}
    psnr, ssim = MAY_LOSE
    aims = {
        f"Student at 2 steps, beside the input at the right brightness: {above[psnr]:+.2f} dB, {above[ssim]:+.3f} SSIM "
        "(both above 0": min(above.values()) > 0,
        f"Beside its teacher at 16 steps: {-lost[psnr]:+.2f} dB, {-lost[ssim]:+.3f} SSIM (at least "
        f"-{MAY_LOSE[psnr]} and -{MAY_LOSE[ssim]}": all(lost[name] <= most for name, most in MAY_LOSE.items()),
    }
    return [f"{aim}: {'reached).' if met else f'missed). Missed because {REASON}.'}" for aim, met in aims.items()]


def add_verdict(output: str) -> list[str]:
    """Adds the verdict to report.json of the evaluation, and returns it."""
    url = storage.join(output, reporting.FILE)
    report = json.loads(storage.read_bytes(url))
    report["verdict"] = verdict(report["rows"])
    storage.write_bytes(url, json.dumps(report, indent=1).encode())
    return list(report["verdict"])


def demo(output: str = "runs/demo") -> None:
    """Runs the whole pipeline on photographs of scikit-image, darkened by a physical model.

    Args:
        output: Folder of everything that the demo makes.
    """
    console, started = make_console(), time.perf_counter()
    write_photographs(f"{output}/photographs")
    for job, flags in commands(output):
        console.print(f"\n$ python jobs/{job.name}.py {flags}", style="bold", soft_wrap=True)
        main(job, shlex.split(flags))
    console.print("", *add_verdict(output), sep="\n", soft_wrap=True)
    console.print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes.")
    console.print(f"Input, teacher, student at 2 steps, ground truth: {storage.join(output, 'before_after.png')}")
    console.print("The runs in MLflow: make ui, then http://127.0.0.1:5000")


if __name__ == "__main__":
    tyro.cli(demo, args=sys.argv[1:])
