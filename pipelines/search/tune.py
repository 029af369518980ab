"""Sweeps over the refinement and loss weights with Ray Tune; every trial is a distillation from one shared cache."""

import math
import os
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray import tune as ray_tune
from ray.tune import Tuner
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from pipelines import reporting, storage, tracking
from pipelines.cluster import use_gpu
from pipelines.config.jobs import TuneConfig
from pipelines.reporting import Report
from pipelines.search import checks, outcome
from pipelines.search.monitor import MonitorCallback, end_trial_runs, monitored
from pipelines.search.space import Dimension, Values, describe_points
from pipelines.search.sweep import OBJECTIVE, STEP, Sweep
from pipelines.tracking import RunHandle
from pipelines.training import distillation, runs, student_registry

EXPERIMENT = "tune"
DRIVER_CPUS = 0.1
# CPUs for a trial's Ray Data tasks, on average, besides its workers'; with fewer they might never be scheduled.
DATA_CPUS = 0.25
ASHA_REDUCTION = 3
SETTINGS = {
    # Seconds between Tune's saves of its list of trials; after a kill, trials started since the last one start anew.
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    # Only Tune's older output can be switched off; MonitorCallback prints the progress.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune's handler would end the sweep at Ctrl-C as if all trials had ended.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Ray Tune would copy these into the trials' runtime environment, which Ray logs; trials read them, like all other
# processes, from the environment of their machine.
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
# Restarts of a trial's driver, which may be lost with its node; Ray Train restarts the trial's workers.
MAX_FAILURES = 2


class ReportObjective(TuneReportCallback):
    """Reports a trial's new validations to Tune, with the objective that the sweep maximizes."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sweep = sweep

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        step = int(metrics[0][STEP])
        objective = self.sweep.objective(metrics[0])
        if objective is not None and self.sweep.is_validated(step):
            super().after_report(run_context, [{**metrics[0], OBJECTIVE: objective}], None)


def run_trial(values: Values, *, sweep: Sweep, parent: RunHandle) -> None:
    """Runs one trial, in a process of its own, or resumes it from its checkpoints."""
    trial_id = ray_tune.get_context().get_trial_id()
    config = sweep.trial_config(trial_id, values)
    if runs.finished(config.output, [distillation.student_name(teacher_steps) for teacher_steps in config.stages]):
        # Tune was killed before it received the last report.
        last = distillation.student_rows(config)[-1]
        ray_tune.report({**last, STEP: sweep.num_steps, OBJECTIVE: sweep.objective(last)})
        return
    stream = distillation.make_stream(config)
    settings = runs.record_config(config.output, config, stream)
    loop = distillation.make_loop(config, sweep.trial_run(trial_id, values, parent), stream.teacher_sha256, settings)
    trainer = runs.make_trainer(loop, stream, config.output, [ReportObjective(sweep)])
    trainer.fit()  # a run that diverged has reported its last validation, which is its result here


class WeightSearch(OptunaSearch):
    """Optuna, which gets the value only of trials that reached the last step; others are pruned at their last step.

    Tune would pass on a stopped trial's last value as its final one, though it may be of an earlier, easier stage.
    """

    num_steps = 0

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        reached = result is not None and result.get(STEP, 0) >= self.num_steps
        super().on_trial_complete(trial_id, result if reached else None, error)


def make_distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's distribution of a searched setting."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.values)
    low, high = dimension.values
    return FloatDistribution(low, high, log=dimension.kind == "loguniform")


def make_search(sweep: Sweep) -> WeightSearch:
    """The search of the config's kind, with the sweep's first points."""
    seed, num_startup = sweep.config.seed, num_startup_trials(sweep)
    tpe = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=num_startup)
    search = WeightSearch(
        {dimension.key: make_distribution(dimension) for dimension in sweep.dimensions},
        metric=OBJECTIVE,
        mode="max",
        points_to_evaluate=[dict(point) for point in sweep.first_points] or None,
        sampler=tpe if sweep.config.search == "tpe" else optuna.samplers.RandomSampler(seed=seed),
    )
    search.num_steps = sweep.num_steps
    return search


def num_startup_trials(sweep: Sweep) -> int:
    """The number of random trials before TPE: Optuna's 10, or a third of a short sweep, at least 1."""
    return min(10, max(1, sweep.num_trials // 3))


def num_concurrent(config: TuneConfig) -> int:
    """The number of trials that run at a time: as configured, or as many as the cluster has CPUs and GPUs for.

    Raises:
        ValueError: if it has too few for one trial.
    """
    if config.concurrent:
        return config.concurrent
    compute = config.distill.compute
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    per_trial = compute.max_workers * compute.cpus_per_worker + DRIVER_CPUS + DATA_CPUS
    fits = int(resources.get("CPU", 0) // per_trial)
    if use_gpu(compute):
        fits = min(fits, int(resources.get("GPU", 0)) // compute.max_workers)
    if fits < 1:
        raise ValueError(
            f"a trial needs {per_trial:g} CPUs (and a GPU per worker where used), but the cluster has only "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; lower distill.compute, add nodes, "
            "or say how many --concurrent trials it will have room for"
        )
    return fits


def make_tuner(sweep: Sweep, parent: RunHandle) -> Tuner:
    """Tune's experiment under the sweep's output, resumed if it exists.

    Trials that were interrupted or failed run again when it is resumed.
    """
    config = sweep.config
    trainable = ray_tune.with_resources(partial(run_trial, sweep=sweep, parent=parent), {"CPU": DRIVER_CPUS})
    experiment = storage.join(config.output, EXPERIMENT)
    if checks.restorable(experiment):
        path, filesystem = storage.for_ray(experiment)
        return Tuner.restore(
            path, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=filesystem
        )
    path, filesystem = storage.for_ray(config.output)
    return Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            search_alg=make_search(sweep),
            scheduler=make_scheduler(sweep) if config.asha else None,
            num_samples=sweep.num_trials,
            max_concurrent_trials=num_concurrent(config),
            trial_dirname_creator=trial_name,
            trial_name_creator=trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=EXPERIMENT,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[MonitorCallback()],
            verbose=0,
        ),
    )


def make_scheduler(sweep: Sweep) -> AsyncHyperBandScheduler:
    """ASHA over the global step; a trial may be stopped after `grace_steps`, or after a ninth of its steps."""
    grace = sweep.config.grace_steps or math.ceil(sweep.num_steps / ASHA_REDUCTION**2)
    return AsyncHyperBandScheduler(
        time_attr=STEP,
        grace_period=min(grace, sweep.num_steps),
        # Past the end, because Tune stops a trial at the report that reaches `max_t`, before its students are written.
        max_t=sweep.num_steps + 1,
        reduction_factor=ASHA_REDUCTION,
    )


def trial_name(trial: Any) -> str:
    """A trial's ID, as the name of its folder."""
    return str(trial.trial_id)


def tune(config: TuneConfig) -> Report:
    """Runs or resumes the sweep; then, if `then_distill`, the best distillation at full length.

    Raises:
        ValueError: if the space, metric, cache or output cannot be used, or no trial reached the end.
    """
    config = resolve_device(config)
    sweep = Sweep(config)
    stream = checks.check_sweep(sweep)
    outcome.record_settings(config, stream)
    base, done = config.distill, outcome.is_done(config.output)
    inputs = student_registry.input_datasets(base, stream)
    ended = done and not config.then_distill
    with tracking.tracked_run(base.tracking, config.output, config, job="tune", inputs=inputs, done=ended) as run:
        report = outcome.saved_report(config.output) if done else run_trials(sweep, run)
        rows = outcome.saved_rows(config.output)
        if done:
            end_trial_runs(sweep, run, rows)
        if config.then_distill and outcome.has_failed(rows):
            held = "not yet: trials failed; run the same command again, or jobs/distill.py --config best.toml"
            report = replace(report, facts={**report.facts, "then_distill": held})
        elif config.then_distill:
            best = sweep.full_config(outcome.best_values(rows, sweep.dimensions))
            distilled = distillation.distill(best, parent=run)
            report = replace(report, facts={**report.facts, "then_distill": distilled.title})
    return report


def resolve_device(config: TuneConfig) -> TuneConfig:
    """The config with `gpu` auto replaced by yes or no, so that all trials use the same kind of device."""
    compute = config.distill.compute
    gpu: Literal["yes", "no"] = "yes" if use_gpu(compute) else "no"
    return replace(config, distill=replace(config.distill, compute=replace(compute, gpu=gpu)))


def run_trials(sweep: Sweep, run: RunHandle) -> Report:
    """Runs the trials and writes their results."""
    checks.check_asha(sweep.config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ENV_VARS_TO_PROPAGATE.difference_update(CREDENTIALS)
    with tracking.RunWriter(run) as writer, monitored(sweep, run, writer) as monitor:
        grid = make_tuner(sweep, run).fit()
        results = [grid[index] for index in range(len(grid))]
        checks.check_complete(sweep, results)
        for result in results:
            monitor.end_result_run(result)
        report = outcome.write_results(sweep, results, writer)
    outcome.write_best(sweep)
    return report


def plan_tune(config: TuneConfig) -> Report:
    """The plan of a sweep: the searched settings, the number of trials and of those at a time, and their length."""
    sweep = Sweep(config)
    checks.check_sweep(sweep)
    rows = [
        {
            "setting": dimension.key,
            "drawn": dimension.kind,
            "from": ", ".join(reporting.format_value(value) for value in dimension.values),
        }
        for dimension in sweep.dimensions
    ]
    facts: dict[str, Any] = {
        "trials": sweep.num_trials,
        "trials at a time": num_concurrent(config),
        "steps per trial": sweep.num_steps,
        "tried first": describe_points(sweep.first_points) if config.search != "grid" else "every combination",
        "maximizes": config.metric,
    }
    return Report(title=f"Plan of tune ({config.search})", rows=rows, facts=facts)
