"""The results of a sweep: the table of its trials, the best configuration, plots."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import tomli_w
from ray.tune import Result

from pipelines import reporting, storage
from pipelines.config.jobs import DistillConfig, TuneConfig
from pipelines.config.parts import as_json
from pipelines.redaction import redact_tree
from pipelines.reporting import Report, Row
from pipelines.search import plotting
from pipelines.search.space import Dimension, Values
from pipelines.search.sweep import OBJECTIVE, STEP, Sweep
from pipelines.tracking import RunWriter
from pipelines.training import runs
from pipelines.training.stream import Stream

BEST, PLOTS = "best.toml", "plots"
# Settings that a rerun may change, because the trials' results do not depend on them. `concurrent` is not among them,
# since Ray Tune keeps the value that a sweep was started with.
FREE_SETTINGS = ("output", "then_distill")
FREE_DISTILL_SETTINGS = ("output", "compute", "tracking")


def record_settings(config: TuneConfig, stream: Stream) -> None:
    """Writes the settings of a new sweep and the keys of its records.

    Raises:
        ValueError: if the sweep was started with other settings or records.
    """
    settings = redact_tree(as_json(config))
    settings |= {f"distill.{name}": value for name, value in settings.pop("distill").items()}
    for name in (*FREE_SETTINGS, *(f"distill.{name}" for name in FREE_DISTILL_SETTINGS)):
        settings.pop(name)
    runs.record_settings(config.output, settings, runs.contents(config.distill, stream), "sweep")


def trial_table(sweep: Sweep, results: Sequence[Result]) -> list[Row]:
    """One row per trial: those that reached the last step first, by falling objective."""
    rows = [trial_row(sweep, result) for result in results]

    def rank(row: Row) -> tuple[bool, int, float]:
        return row["outcome"] == "finished", row[STEP], -math.inf if row[OBJECTIVE] is None else row[OBJECTIVE]

    return sorted(rows, key=rank, reverse=True)


def trial_row(sweep: Sweep, result: Result) -> Row:
    """A trial's outcome (finished, stopped, failed), last step, searched values, objective and metrics."""
    metrics = result.metrics or {}
    step = int(metrics.get(STEP, 0))
    outcome = "failed" if result.error else "finished" if step >= sweep.num_steps else "stopped"
    values = {dimension.key: (result.config or {}).get(dimension.key) for dimension in sweep.dimensions}
    figures = {name: metrics.get(name) for name in sweep.metrics}
    trial = storage.base_name(result.path)
    return {"trial": trial, "outcome": outcome, STEP: step, **values, OBJECTIVE: metrics.get(OBJECTIVE), **figures}


def write_results(sweep: Sweep, results: Sequence[Result], writer: RunWriter) -> Report:
    """Writes plots and report.json, and logs them to the sweep's run.

    Raises:
        ValueError: if no trial reached the end.
    """
    config = sweep.config
    rows = trial_table(sweep, results)
    if not rows or rows[0]["outcome"] != "finished":
        raise ValueError(
            f"none of {len(rows)} trials reached step {sweep.num_steps} ({describe_errors(results)}); fix the cause "
            "and run the same command again"
        )
    counts = Counter(str(row["outcome"]) for row in rows)
    facts = {"metric": config.metric, **counts, "best": rows[0]["trial"], BEST: storage.join(config.output, BEST)}
    title = f"Trials, best first by {config.metric}"
    report = Report(title=title, rows=rows, facts=facts, url=config.output)
    curves = {storage.base_name(result.path): learning_curve(result) for result in results}
    plots = plotting.plot_sweep(sweep, rows, curves)
    for name, data in plots.items():
        storage.write_bytes(storage.join(config.output, PLOTS, name), data)
    reporting.save(report)
    log_results(sweep, writer, rows, plots)
    return replace(report, rows=terminal_rows(rows, config.metric))


def terminal_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """The table without the columns that a terminal has no room for; report.json has all."""
    hidden = {STEP, *(name for name in rows[0] if name.endswith("_gt_mean"))}
    hidden |= {OBJECTIVE} if metric in rows[0] else set()
    return [{name.rpartition(".")[2]: value for name, value in row.items() if name not in hidden} for row in rows]


def write_best(sweep: Sweep) -> None:
    """Writes best.toml, last of all: it marks a sweep that has ended and whose results were logged."""
    rows = saved_rows(sweep.config.output)
    best = to_toml(sweep.full_config(best_values(rows, sweep.dimensions)))
    storage.write_bytes(storage.join(sweep.config.output, BEST), best.encode())


def is_done(output: str) -> bool:
    """Whether a sweep has ended without failed trials, which a rerun would try again."""
    return storage.exists(storage.join(output, BEST)) and not has_failed(saved_rows(output))


def has_failed(rows: Sequence[Row]) -> bool:
    return any(row["outcome"] == "failed" for row in rows)


def log_results(sweep: Sweep, writer: RunWriter, rows: Sequence[Row], plots: Mapping[str, bytes]) -> None:
    """Logs the sweep's files and the best trial's metrics to its run."""
    best = to_toml(sweep.full_config(best_values(rows, sweep.dimensions)), redacted=True).encode()
    files = {**plots, BEST: best, "trials.json": json.dumps([dict(row) for row in rows], indent=1).encode()}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.write_bytes(data)
            writer.artifact(path, PLOTS if name in plots else "")
    writer.metrics(
        {f"best/{name}": rows[0][name] for name in sweep.metrics if rows[0][name] is not None}, step=len(rows)
    )


def describe_errors(results: Sequence[Result]) -> str:
    """The last line of the first failed trial's error, or a hint where all trials were stopped."""
    errors = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
    return errors[0] if errors else "all were stopped; lower --distill.optim.learning-rate"


def learning_curve(result: Result) -> tuple[list[int], list[float]]:
    """(global steps, objective) of a trial's validations."""
    frame = result.metrics_dataframe
    if frame is None or OBJECTIVE not in frame:
        return [], []
    known = frame.drop_duplicates(STEP, keep="last").sort_values(STEP)
    return [int(step) for step in known[STEP]], [float(value) for value in known[OBJECTIVE]]


def saved_report(output: str) -> Report:
    """The report of a sweep that has ended."""
    document = json.loads(storage.read_bytes(storage.join(output, reporting.FILE)))
    facts = {name: value for name, value in document.items() if name not in ("title", "rows")}
    rows = terminal_rows(document["rows"], document["metric"])
    return Report(title=f"The sweep is already done: {output}", rows=rows, facts=facts)


def saved_rows(output: str) -> list[Row]:
    """The whole table of a sweep that has ended."""
    rows: list[Row] = json.loads(storage.read_bytes(storage.join(output, reporting.FILE)))["rows"]
    return rows


def to_toml(config: DistillConfig, *, redacted: bool = False) -> str:
    """A distillation as a TOML file for `jobs/distill.py --config`.

    Args:
        config: the distillation; its tracking and device settings are left out.
        redacted: removes the credentials of URLs.
    """
    settings = as_json(config)
    # Both depend on who runs it and where, and a tracking URI may hold a password.
    del settings["tracking"], settings["compute"]["gpu"]
    return tomli_w.dumps(redact_tree(settings) if redacted else settings)


def best_values(rows: Sequence[Row], dimensions: Sequence[Dimension]) -> Values:
    """The searched values of the best trial, which is the first row."""
    return {dimension.key: rows[0][dimension.key] for dimension in dimensions}
