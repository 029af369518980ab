"""A training run from the driver's side: its config on record, Ray Train around it, and whether it is done."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import ray.data
import ray.exceptions
import ray.train
from ray.data import ExecutionOptions, ExecutionResources
from ray.train import DataConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines import failures, reporting, shards, storage
from pipelines.cluster import use_gpu
from pipelines.config.parts import as_json
from pipelines.progress import Progress
from pipelines.redaction import redact_tree
from pipelines.reporting import Report
from pipelines.training import recovery
from pipelines.training.board import training_bar
from pipelines.training.checkpoints import checkpoint_step
from pipelines.training.loop import Loop, train_worker
from pipelines.training.stream import Stream, make_dataset

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
CHECKPOINTS_KEPT = "the checkpoints before are kept"
# Bytes that Ray Data may keep ready for each worker: several spans, however long the run.
READY_BYTES = 2**29
# Settings that may differ when a run is resumed, because they do not change what is learned.
FREE_SETTINGS = ("output", "compute", "tracking", "checkpoint", "teacher_actors")
# Settings that are younger than runs that shall resume, recorded only where they are not at their defaults.
LATER_SETTINGS = ("levels", "curve", "detail")
PLACES = ("pairs", "teacher", "cache", "lpips", "init")

Settings = Mapping[str, Any]


def learned_settings(config: Any) -> dict[str, Any]:
    """The resolved settings that determine what is learned, as JSON would return them, without credentials in URLs."""
    resolved = redact_tree(as_json(config))
    omitted = {*FREE_SETTINGS, *(name for name in LATER_SETTINGS if is_at_default(config, name))}
    return {name: value for name, value in resolved.items() if name not in omitted}


def is_at_default(config: Any, name: str) -> bool:
    """Whether a config has a setting, or a part, of this name, at its default."""
    for field in fields(config):
        if field.name == name:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            return bool(getattr(config, name) == default)
    return False


def recorded_settings(config: Any) -> dict[str, Any]:
    """The settings as they are recorded with weights: without URLs, which mean nothing elsewhere."""
    return without_places(learned_settings(config))


def without_places(settings: Settings) -> dict[str, Any]:
    """Settings without the URLs of inputs, also those of a part (`distill.pairs`)."""
    return {name: value for name, value in settings.items() if name.rpartition(".")[2] not in PLACES}


def record_config(output: str, config: Any, stream: Stream) -> Settings:
    """Writes the resolved config of a new run and what its inputs hold.

    Returns:
        What a run is resumed by: settings and contents, but no places, so that inputs may move.

    Raises:
        ValueError: if the run was started with another config or other records, for example of another teacher.
    """
    return record_settings(output, learned_settings(config), contents(config, stream), "run")


def record_settings(output: str, settings: Settings, held: Settings, what: str) -> Settings:
    """As `record_config`, for settings and contents that are known; `what` names a run or a sweep in errors."""
    wanted = {**without_places(settings), **held}
    if not is_recorded(output, wanted, what):
        storage.check_writable(output)
        url = storage.join(output, CONFIG)
        storage.write_bytes(url, json.dumps({**settings, **held}, indent=1, sort_keys=True).encode())
    return wanted


def contents(config: Any, stream: Stream) -> Settings:
    """What the inputs of a run hold, wherever they lie.

    The key of each stage's records covers pairs, cache and teacher; other files have their SHA-256.
    """
    urls = {"init": [config.init] if getattr(config, "init", "") else [], "lpips": getattr(config, "lpips", ())}
    files = {f"{name}_sha256": [storage.sha256(url) for url in found] for name, found in urls.items() if found}
    return {"records": [stage.key for stage in stream.stages], **files}


def is_recorded(output: str, wanted: Settings, what: str = "run") -> bool:
    """Whether a run or sweep with these settings and contents is recorded at an output.

    Raises:
        ValueError: if one with others is.
    """
    url = storage.join(output, CONFIG)
    if not storage.exists(url):
        return False
    shards.require_match(without_places(json.loads(storage.read_bytes(url))), wanted, f"the {what} at {output}")
    return True


def save_report(report: Report, done: str) -> Report:
    """Writes a run's report, unless there is one.

    Args:
        done: title of the returned report if the run had already finished; it then has rows only. Else empty.
    """
    if not done or not storage.exists(storage.join(report.url, reporting.FILE)):
        reporting.save(report)
    return Report(title=done, rows=report.rows) if done else report


def finished(output: str, names: Sequence[str]) -> bool:
    """Whether the weights of every stage of a run exist."""
    return all(storage.exists(storage.join(output, name)) for name in names)


def latest_step(output: str) -> int:
    """The global step of the newest committed checkpoint of a run, 0 if there is none."""
    try:
        checkpoint = Result.from_path(*storage.for_ray(storage.join(output, CHECKPOINTS))).checkpoint
    except RuntimeError:  # Ray's error for a run that does not exist
        return 0
    return checkpoint_step(checkpoint) if checkpoint else 0


class RemainingData(DataConfig):
    """Distributes the records after the newest checkpoint; evaluated at every start, for the workers of that start."""

    def __init__(self, stream: Stream, output: str, options: ExecutionOptions) -> None:
        super().__init__(execution_options=options)
        self.stream, self.output = stream, output

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        left = {name: make_dataset(self.stream, latest_step(self.output), world_size) for name in datasets}
        return super().configure(left, world_size, *args, **kwargs)


def make_trainer(loop: Loop, stream: Stream, output: str, callbacks: Sequence[Any] = ()) -> TorchTrainer:
    """The Ray Train run with its checkpoints at `output/checkpoints`; fitting it again resumes from them."""
    storage.check_writable(output)
    recovery.drop_damaged(storage.join(output, CHECKPOINTS))
    path, filesystem = storage.for_ray(output)
    compute = loop.compute
    gpu = use_gpu(compute)
    ready = ExecutionResources(object_store_memory=READY_BYTES * compute.max_workers)
    options = ExecutionOptions(preserve_order=True, resource_limits=ready)
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type] # statically, the first version again, which returns nothing
        train_loop_config={"loop": loop},
        scaling_config=ScalingConfig(
            num_workers=compute.workers,  # type: ignore[arg-type] # the first version again
            use_gpu=gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=loop.checkpoint.keep),
            callbacks=list(callbacks),
            # Statically, ray.train still names the first version of this class, which has no such field.
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
        datasets={"train": ray.data.range(0)},  # a name only; see RemainingData
        dataset_config=RemainingData(stream, output, options),
    )


def failure_causes(error: ray.train.TrainingFailedError) -> Iterator[BaseException]:
    """All exceptions behind a failed training, of every worker and the controller, down to the first causes."""
    pending: list[BaseException | None] = [*getattr(error, "worker_failures", {}).values()]
    pending.append(getattr(error, "controller_failure", None))
    while pending:
        if cause := pending.pop():
            yield cause
            pending += [cause.__cause__, getattr(cause, "cause", None), getattr(cause, "_base_exc", None)]


def train(loop: Loop, stream: Stream, output: str) -> Mapping[str, Any]:
    """Makes the trainer and runs it to the end, with a progress bar where standard output is a terminal (see `fit`)."""
    with training_bar(Progress("training", loop.num_steps, "steps")) as board:
        return fit(make_trainer(replace(loop, board=board), stream, output))


def fit(trainer: TorchTrainer) -> Mapping[str, Any]:
    """Runs Ray Train to the end and returns the last reported metrics.

    Raises:
        ValueError: if the run stopped itself, with the remedy, or its inputs could not be used.
        OSError: if storage could not be written or read, even after the workers were restarted.
    """
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = list(failure_causes(error))
        for explain in (failures.raise_user_error, failures.raise_if_killed):
            for cause in causes:
                explain(cause, "training", CHECKPOINTS_KEPT)
        raise
    except SystemExit:  # Ray Train's answer to Ctrl-C, when it has ended the workers
        raise KeyboardInterrupt from None
    except ray.exceptions.RayError as error:  # Ray Train's controller itself could not be started
        failures.raise_user_error(error, "training", CHECKPOINTS_KEPT)
        raise
    if stopped := getattr(result, "return_value", ""):
        raise ValueError(
            f"training stopped {stopped}; the last good checkpoint is kept, and the same settings would "
            "end there again: use another --output with a lower optim.learning_rate, or with optim.precision fp32"
        )
    return result.metrics or {}
