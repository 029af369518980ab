"""The paper's first three experiments, each from the cache to a report, composed of ingest, distill and evaluate.

A rerun makes only what is missing. Students lie in OUTPUT/students, which the experiments share; the report and plot of
an experiment lie in OUTPUT/EXPERIMENT.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipelines import reporting, shards, storage
from pipelines.config.experiments import ExperimentConfig
from pipelines.config.jobs import DistillConfig, IngestConfig
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.experiments import curves
from pipelines.images import encode_png
from pipelines.pairs.dataset import decode_pair, split_rows, split_shards
from pipelines.pairs.ingest import ingest
from pipelines.reporting import Report, Row
from pipelines.shards import shards_hash
from pipelines.training.distillation import distill, plan_distill, student_name
from reddit_core.trajectory import student_steps

PLOT = "plot.png"


@dataclass(frozen=True)
class Student:
    """A student of an experiment: its name in the report, the steps of its teacher, and the run that makes it."""

    name: str
    teacher_steps: int
    run: DistillConfig

    @property
    def steps(self) -> int:
        return student_steps(self.teacher_steps)

    @property
    def method(self) -> str:
        """As `evaluate --weights` takes it."""
        return f"{self.name}:{self.steps}={storage.join(self.run.output, student_name(self.teacher_steps))}"


def students_of(config: ExperimentConfig) -> list[Student]:
    """Students for each seed: with and without refinement, or for steps and darkness those that `distill` has."""
    base = config.distill
    if config.experiment == "refinement":
        weights = {"refined": config.refine_weight, "unrefined": 0.0}
    else:
        weights = {"refined" if base.refine_weight else "unrefined": base.refine_weight}
    students = []
    for name, weight in weights.items():
        for seed in config.seeds:
            output = storage.join(config.output, "students", f"{name}-seed-{seed}")
            run = replace(
                base,
                output=output,
                refine_weight=weight,
                optim=replace(base.optim, seed=seed),
                tracking=replace(base.tracking, model=""),
            )
            students += [Student(f"{name}-seed-{seed}", stage, run) for stage in base.stages]
    return students


def methods_of(config: ExperimentConfig) -> tuple[str, ...]:
    """Every student, and the teacher at as many and at twice as many steps, as `evaluate --weights` takes them."""
    stages = config.distill.stages
    steps = sorted({*stages, *map(student_steps, stages)}, reverse=True)
    teachers = [f"teacher:{count}={config.distill.teacher}" for count in steps]
    return (*teachers, *(student.method for student in students_of(config)))


def runs_of(config: ExperimentConfig) -> list[DistillConfig]:
    """The distillations that make the students."""
    return list({student.run.output: student.run for student in students_of(config)}.values())


def check(config: ExperimentConfig) -> None:
    """Raises ValueError if a run can be neither started nor resumed, or there is no validation split."""
    split_shards(shards.read_manifest(config.distill.pairs, "pairs"), "validation")
    for run in runs_of(config):
        plan_distill(run)


def experiment(config: ExperimentConfig) -> Report:
    """Distils the students that are missing and evaluates all of them, for darkness on every exposure.

    Writes report.json and a plot in OUTPUT/EXPERIMENT, and below it, for each dataset, what `evaluate` writes.

    Raises:
        ValueError: if the cache, teacher and pairs cannot be used together, before anything is spent.
    """
    check(config)
    for run in runs_of(config):
        distill(run)
    rows: list[Row] = []
    for name, pairs in evaluated_pairs(config).items():
        judged = evaluate(
            EvaluateConfig(
                pairs=pairs,
                output=storage.join(config.folder, "reports", name),
                weights=methods_of(config),
                limit=config.limit,
                lpips=config.distill.lpips,
                precision=config.distill.optim.precision,
                compute=config.distill.compute,
                tracking=config.distill.tracking,
            )
        )
        rows += [{"pairs": name, **row} for row in judged.rows]
    table, plot = over_seeds(rows), storage.join(config.folder, PLOT)
    storage.write_bytes(plot, curves.plot_experiment(config, table))
    facts = {
        "seeds": list(config.seeds),
        "refine_weight": max(student.run.refine_weight for student in students_of(config)),
        "images, at most": config.limit or "all",
        "plot": plot,
    }
    report = Report(title=f"Experiment {config.experiment}", rows=table, facts=facts, url=config.folder)
    reporting.save(report)
    return report


def over_seeds(rows: list[Row]) -> list[Row]:
    """One row for each method: means over the seeds, and with several seeds the standard deviation of raw PSNR."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        name = str(row["method"]).partition("-seed-")[0]
        groups.setdefault((row["pairs"], name, row["steps"]), []).append(row)
    table: list[Row] = []
    for (pairs, name, steps), members in groups.items():
        figures = [key for key, value in members[0].items() if isinstance(value, float)]
        means = {key: float(np.mean([row[key] for row in members])) for key in figures}
        spread = float(np.std([row["psnr"] for row in members], ddof=1)) if len(members) > 1 else None
        table.append({"pairs": pairs, "method": name, "steps": steps, **means, "psnr_spread": spread})
    return table


def evaluated_pairs(config: ExperimentConfig) -> Mapping[str, str]:
    """URLs of the pair datasets to evaluate on, by name; the darkened ones are made if they are missing."""
    if config.experiment != "darkness":
        return {"validation": config.distill.pairs}
    manifest = shards.read_manifest(config.distill.pairs, "pairs")
    key = shards.spec_key({"pairs": manifest.key, "shards": shards_hash(split_shards(manifest, "validation"))})
    folder = storage.join(config.folder, f"{key}-{config.limit or 'all'}-images")
    photographs, splits = write_normal_images(config, folder)
    datasets = {}
    for name, exposure in config.exposures().items():
        darkened = IngestConfig(
            layout="degrade",
            source=photographs,
            splits=splits,
            output=storage.join(folder, name),
            degrade=exposure,
            degrade_seed=config.degrade_seed,
        )
        ingest(darkened)
        datasets[name] = darkened.output
    return datasets


def write_normal_images(config: ExperimentConfig, folder: str) -> tuple[str, str]:
    """Writes the first normal images of the validation split; returns the URLs of their folder and of their splits."""
    photographs, splits = (storage.join(folder, name) for name in ("photographs", "splits.csv"))
    if storage.exists(splits):  # it is written last
        return photographs, splits
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("pair_id", "split"))
    for index, normal in enumerate(islice(normal_images(config.distill.pairs), config.limit or None)):
        name = f"{index:04d}.png"
        storage.write_bytes(storage.join(photographs, name), encode_png(normal))
        writer.writerow((name, "validation"))
    storage.write_bytes(splits, table.getvalue().encode())
    return photographs, splits


def normal_images(pairs: str) -> Iterator[NDArray[np.uint8]]:
    """The normal images of the validation split in order, each [H, W, 3] uint8."""
    for row in split_rows(pairs, "validation"):
        yield decode_pair(row)[1]


def plan_experiment(config: ExperimentConfig) -> Report:
    """The students, and the datasets that they would be evaluated on; distils nothing."""
    check(config)
    rows: list[Row] = [{"student": student.name, "steps": student.steps} for student in students_of(config)]
    facts: Row = {"judged on": "validation"}
    if config.experiment == "darkness":
        facts = {"judged on stops": list(config.stops), "and electrons": list(config.full_wells)}
    return Report(title=f"Plan of experiment {config.experiment}", rows=rows, facts=facts)
