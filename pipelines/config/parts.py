"""Parts of the configurations that several jobs share."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from pipelines import storage
from reddit_core.networks import NetworkConfig
from reddit_core.pixels import SSIM_WINDOW
from reddit_core.precision import Precision
from reddit_core.schedule import LevelDraw

Split = Literal["train", "validation", "test"]
RateShape = Literal["constant", "cosine", "linear"]
# Most records in a trajectory shard, by default and where trajectories are not cached: training sees the same records
# in the same order wherever the teacher runs.
RECORDS_PER_SHARD = 512
Trajectories = Literal["cache", "online", "stream"]
Target = Literal["two-step", "consistency"]
TrainingLevels = Literal["all", "noisiest"]
# Names of the settings that hold one URL or several, in any config.
URL_SETTINGS = frozenset(
    ("source", "low", "normal", "splits", "against", "pairs", "init", "teacher", "cache", "lpips", "weights", "output")
)

IntList = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs="*",  # a list in a TOML file becomes several words
        metavar="INT,INT,...",
        instance_from_str=lambda args: tuple(int(part) for word in args for part in word.split(",") if part),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, int) for part in value),
        str_from_instance=lambda value: [",".join(str(part) for part in value)],
    ),
]

# A number of workers, or a range of it.
Workers = Annotated[
    int | tuple[int, int],
    PrimitiveConstructorSpec(
        nargs="*",  # a list in a TOML file becomes several words
        metavar="N|MIN:MAX",
        instance_from_str=lambda args: parse_workers(":".join(args)),
        is_instance=lambda value: isinstance(value, (int, tuple)),
        str_from_instance=lambda value: [
            ":".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
        ],
    ),
]


def parse_workers(text: str) -> int | tuple[int, int]:
    """`4`, or `1:8`."""
    least, colon, most = text.partition(":")
    return (int(least), int(most)) if colon else int(least)


def require(condition: bool, message: str) -> None:
    """Raises ValueError unless the condition holds; the message states value, rule and remedy in one line."""
    if not condition:
        raise ValueError(message)


def reject_unused(config: Any, names: tuple[str, ...], reason: str, prefix: str = "") -> None:
    """Raises ValueError for settings that differ from their default although the chosen mode does not use them.

    Args:
        config: a config, or a part of one.
        names: fields of it; of a field that is a part, all its fields.
        reason: the rule and the remedy.
        prefix: of the part's settings in the message, such as `degrade.`.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in names:
            continue
        if is_dataclass(value):
            reject_unused(value, tuple(part.name for part in fields(value)), reason, f"{prefix}{field.name}.")
        else:
            require(value == field.default, f"{prefix}{field.name} is {value}, but {reason}")


def as_json(config: Any) -> dict[str, Any]:
    """A config's fields as JSON gives them back (tuples become lists), to be compared with what was saved."""
    fields_as_json: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return fields_as_json


def make_absolute(config: object, *names: str) -> None:
    """Makes the URL fields of a config under construction absolute, since workers run in other folders."""
    for name in names:
        if isinstance(value := getattr(config, name), tuple):
            object.__setattr__(config, name, tuple(storage.resolve(url) for url in value))
        elif value:
            object.__setattr__(config, name, storage.resolve(value))


def urls_of(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted setting, URL) for a config and its parts; of NAME:STEPS=URL, the URL."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from urls_of(value, f"{prefix}{field.name}.")
        elif field.name in URL_SETTINGS and value:
            texts = [value] if isinstance(value, str) else [text.partition("=")[2] or text for text in value]
            yield from ((f"{prefix}{field.name}", url) for url in texts)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow records what a job measures."""

    enabled: bool = True
    """Track this job in MLflow."""
    uri: str = ""
    """Tracking URI; empty means MLFLOW_TRACKING_URI, else the embedded store runs/mlflow.db."""
    experiment: str = "reddit"
    """MLflow experiment that the run belongs to."""


@dataclass(frozen=True, kw_only=True)
class StudentTrackingConfig(TrackingConfig):
    """Where MLflow records what a distillation measures, and its student."""

    model: str = "reddit-student"
    """Registered model that a finished student becomes a version of; empty registers none."""
    licence: str = ""
    """Licence of the training data, for the model's card; empty means that it is not known."""

    def __post_init__(self) -> None:
        wrong = sorted(set(self.model) & set("/:'\""))
        require(
            not wrong, f"model is {self.model!r}, but a registered model's name has no {' '.join(wrong)}; leave it out"
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How many workers, and what each of them has."""

    workers: Workers = 1
    """Data-parallel training workers, or actors; with MIN:MAX their number follows the size of the cluster."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that each worker reserves."""
    threads: int = 0
    """Torch CPU threads per worker; 0 is cores / workers (precompute: cpus_per_worker, so that a cache's bytes depend
    neither on the number of workers nor on the machine, only on batch size, threads and kind of device)."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether each worker gets one GPU; auto gives it one if the cluster has any."""

    @property
    def elastic(self) -> bool:
        return isinstance(self.workers, tuple)

    @property
    def min_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    def __post_init__(self) -> None:
        require(
            1 <= self.min_workers <= self.max_workers,
            f"workers is {self.workers}, but must be at least 1, or MIN:MAX such as 1:8",
        )
        require(self.cpus_per_worker > 0, f"cpus_per_worker is {self.cpus_per_worker}, but must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainingComputeConfig(ComputeConfig):
    """How many training workers, what each of them has, and how often they may fail."""

    max_failures: int = 3
    """Failures of workers that a run survives; nodes that are preempted do not count; -1 is no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_failures >= -1, f"max_failures is {self.max_failures}, but must be at least -1 (no limit)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Length, learning rate and precision of an optimization."""

    steps: int = 20_000
    """Optimizer steps (per stage, when distilling)."""
    batch_size: int = 16
    """Samples per optimizer step over all workers."""
    accumulate: int = 1
    """Micro-batches that each worker's share of the batch is split into."""
    learning_rate: float = 1e-4
    """Peak of AdamW's learning rate."""
    rate_shape: RateShape = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights; warmed up as (1 + n) / (10 + n)."""
    precision: Precision = "fp32"
    """bf16 runs the network under autocast."""
    compile: bool = False
    """Run the network through torch.compile, on a GPU as CUDA graphs: 1.8 times as fast there, after two minutes."""
    max_nonfinite: int = 10
    """Steps with a non-finite loss or gradient that are skipped before the run stops."""
    seed: int = 0
    """Seed of initialization, order and draws."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps is {self.steps}, but must be at least 1")
        require(
            self.accumulate >= 1 and self.batch_size >= self.accumulate,
            f"batch_size is {self.batch_size} and accumulate {self.accumulate}, "
            "but every micro-batch needs at least one sample; raise batch_size or lower accumulate",
        )
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}, but must be above 0; 1e-4 is usual")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}, but must be in [0, 1); 0.999 is usual")
        require(
            self.max_nonfinite >= 0, f"max_nonfinite is {self.max_nonfinite}, but must not be negative; 10 is usual"
        )
        require(self.grad_clip > 0, f"grad_clip is {self.grad_clip}, but must be above 0; inf switches it off")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves its state and validates."""

    every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept: the newest ones."""
    validate_every: int = 1000
    """Steps between validations with the few-step sampler; 0 switches them off."""
    validation_images: int = 8
    """Number of validation images."""
    validation_crop: int = 192
    """Side of the centre crop of each validation image in pixels; 0 takes whole images."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every is {self.every}, but must be at least 1 step")
        require(self.keep >= 1, f"keep is {self.keep}, but at least 1 checkpoint must be kept")
        require(self.validate_every >= 0, f"validate_every is {self.validate_every}, but must be at least 0 (off)")
        require(self.validation_images >= 1, f"validation_images is {self.validation_images}, but must be at least 1")
        require(
            self.validation_crop == 0 or self.validation_crop >= SSIM_WINDOW,
            f"validation_crop is {self.validation_crop}, but SSIM needs {SSIM_WINDOW} pixels; 0 takes whole images",
        )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How the records of distillation segments are drawn; part of a cache's key."""

    crop: int = 96
    """Side of the crops in pixels."""
    crops: int = 4
    """Crops per pair."""
    min_scale: float = 1.0
    """Each crop is cut from its image reduced to a scale drawn log-uniformly from [min_scale, 1]; below 1, crops show
    more of a scene, from which its overall brightness can be learned."""
    brightness_jitter: float = 0.0
    """Each normal-light crop is made brighter or darker by a factor drawn log-uniformly from exp(-jitter) to
    exp(jitter), and the exposure gain with it; 0.2 is usual, for networks that are told the gain."""
    draws: int = 1
    """Draws of noise and noise levels per crop."""
    levels: LevelDraw = "interval"
    """Where noise levels are drawn: between neighbouring nodes, at the nodes, or as released."""
    shared_t: int = 1
    """Consecutive records that share one segment t, u, s; the released code's batch shares one."""
    seed: int = 0
    """Seed of crops, noise and levels."""

    def __post_init__(self) -> None:
        for name in ("crop", "crops", "draws", "shared_t"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but must be at least 1")
        check_min_scale(self.min_scale)
        check_brightness_jitter(self.brightness_jitter)


def check_brightness_jitter(jitter: float, network: NetworkConfig | None = None) -> None:
    """Rejects a jitter out of range, and any for a network that is not told the gain."""
    require(0 <= jitter <= 1, f"brightness_jitter is {jitter}, but must be in [0, 1]; 0.2 is usual")
    require(
        jitter == 0 or network is None or network.takes_gain,
        f"brightness_jitter is {jitter}, but the network is not told the exposure gain; use 0",
    )


def check_min_scale(min_scale: float) -> None:
    require(0 < min_scale <= 1, f"min_scale is {min_scale}, but must be in (0, 1]; 1 leaves images as they are")


def check_rollout(rollout: int) -> None:
    require(rollout >= 0, f"rollout is {rollout}, but must not be negative; 0 makes no steps")


def check_stages(stages: tuple[int, ...]) -> None:
    """Rejects stages that are not falling even numbers: the steps of each stage's teacher, whose student has half."""
    for stage in stages:
        require(
            stage >= 2 and stage % 2 == 0,
            f"stages holds {stage}, but a stage is its teacher's even number of steps; use 16,8,4 (or 2)",
        )
    require(bool(stages), "stages is empty, but needs at least one teacher's number of steps; use 16,8,4")
    require(
        list(stages) == sorted(set(stages), reverse=True),
        f"stages is {stages}, but must fall without repeats, such as 16,8,4",
    )
