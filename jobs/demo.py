"""Runs the whole pipeline on a few photographs, by the command lines of the jobs."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tyro
from rich.console import Console

from jobs import distill, evaluate, ingest, precompute, train_teacher
from jobs.cli import Job, main
from jobs.demo_photographs import write_photographs
from pipelines import reporting, storage
from pipelines.reporting import Row
from pipelines.training.teacher import WEIGHTS

SHIPPED_TEACHER = "weights/demo-teacher.safetensors"
STEPS = (8, 4, 2)
# Loss of raw PSNR, in dB, that the aims allow the 2-step student against its teacher's better row.
MAY_LOSE = 0.5
# Measured (tests/benchmarks/2026-11-22-demo.md): with 200 steps a stage its sharpness passes the teacher's at 16 steps.
REASON = "the preset's 80 steps a stage are what fits eight minutes on two cores; more of them come closer"


def commands(output: str, teacher: str, *, train: bool) -> Iterator[tuple[Job[Any], str]]:
    """Yields the jobs of the demo in order, each with its flags."""
    pairs, cache, experiment = f"{output}/pairs", f"{output}/cache", "--tracking.experiment demo"
    photographs = f"{output}/photographs"
    yield (
        ingest.JOB,
        f"--layout degrade --source {photographs} --splits {photographs}-splits.csv --output {pairs}",
    )
    if train:
        yield train_teacher.JOB, f"--preset demo --pairs {pairs} --output {output}/teacher {experiment}"
    yield precompute.JOB, f"--preset demo --pairs {pairs} --teacher {teacher} --output {cache} --stages 16,8,4"
    inputs = f"--preset demo --cache {cache} --teacher {teacher} --pairs {pairs} {experiment}"
    yield distill.JOB, f"{inputs} --output {output}/distill --stages 16,8,4"
    yield distill.JOB, f"{inputs} --output {output}/distill-w0 --stages 4 --refine-weight 0"
    students = " ".join(f"student:{steps}={output}/distill/student-{steps}.safetensors" for steps in STEPS)
    yield (
        evaluate.JOB,
        f"--pairs {pairs} --output {output} {experiment} --weights teacher:16={teacher} teacher:2={teacher} "
        f"{students} student-w0:2={output}/distill-w0/student-2.safetensors --shown input:0 teacher:16 student:2",
    )


def verdict(rows: Sequence[Row]) -> list[str]:
    """Compares the 2-step student with its teacher: one line for each aim, with the reason if it is missed."""
    found = {(row["method"], row["steps"]): row for row in rows}
    student, many, few = found["student", 2], found["teacher", 16], found["teacher", 2]
    gain = student["psnr"] - max(many["psnr"], few["psnr"])
    way = (student["sharpness"] - few["sharpness"]) / (many["sharpness"] - few["sharpness"])
    pixels = f"Student at 2 steps: {gain:+.2f} dB raw PSNR beside its teacher's better row (at least -{MAY_LOSE}"
    detail = f"Its sharpness has gone {way:.0%} of the way from the teacher's at 2 steps to that at 16 (most of it"
    aims = {pixels: gain >= -MAY_LOSE, detail: way > 0.5}
    return [f"{aim}: {'reached).' if met else f'missed). Missed because {REASON}.'}" for aim, met in aims.items()]


def add_verdict(output: str) -> list[str]:
    """Adds the verdict to report.json of the evaluation, and returns it."""
    url = storage.join(output, reporting.FILE)
    report = json.loads(storage.read_bytes(url))
    report["verdict"] = verdict(report["rows"])
    storage.write_bytes(url, json.dumps(report, indent=1).encode())
    return list(report["verdict"])


def demo(output: str = "runs/demo", from_scratch: bool = False) -> None:
    """Runs the whole pipeline on photographs of scikit-image, darkened by a physical model.

    Args:
        output: Folder of everything that the demo makes.
        from_scratch: Train the teacher instead of taking the one that is shipped.
    """
    console, started = Console(highlight=False), time.perf_counter()
    teacher = f"{output}/teacher/{WEIGHTS}" if from_scratch else SHIPPED_TEACHER
    write_photographs(f"{output}/photographs")
    for job, flags in commands(output, teacher, train=from_scratch):
        console.print(f"\n[bold]$ python jobs/{job.name}.py {flags}[/bold]", soft_wrap=True)
        main(job, shlex.split(flags))
    console.print("", *add_verdict(output), sep="\n", soft_wrap=True)
    console.print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes.")
    console.print(f"Input, teacher, student at 2 steps, ground truth: {storage.join(output, 'before_after.png')}")
    console.print("The runs in MLflow: make ui, then http://127.0.0.1:5000")


if __name__ == "__main__":
    tyro.cli(demo, args=sys.argv[1:])
