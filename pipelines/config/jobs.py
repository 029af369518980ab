"""Configurations of the jobs up to a student: frozen dataclasses, from which the command lines are made.

`parts.py` holds shared parts, `teacher.py` the training of a teacher, `use.py` the jobs that evaluate, use, export and
convert weights, `experiments.py` the experiments. Field docstrings become the help of the flags. `__post_init__`
rejects values that cannot work, and settings that the chosen mode does not use, with value, rule and remedy.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipelines.config.parts import (
    RECORDS_PER_SHARD,
    CheckpointConfig,
    ComputeConfig,
    IntList,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    Target,
    TrainingComputeConfig,
    Trajectories,
    check_rollout,
    check_stages,
    make_absolute,
    reject_unused,
    require,
)
from reddit_core.degrade import DegradeConfig
from reddit_core.losses import LossWeights
from reddit_core.precision import Precision
from reddit_core.retinex import ReflectanceConfig

Layout = Literal["lolv1", "lolv2-real", "lolv2-synthetic", "lsrw", "sid", "smid", "sdsd", "folders", "table", "degrade"]


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Turn image pairs at any URL into pair shards, split by scene."""

    output: str
    """URL of the pair dataset to write."""
    source: str = ""
    """URL of the dataset's root: a layout's folder, a CSV or JSONL of URL pairs, or photographs to darken."""
    layout: Layout = "lolv1"
    """How the files lie below the source."""
    low: str = ""
    """URL of the low-light folder (layout folders)."""
    normal: str = ""
    """URL of the normal-light folder (layout folders)."""
    pattern: str = ""
    """Regular expression whose first group, found in the file name of either side, pairs them (layout folders)."""
    splits: str = ""
    """URL of a CSV of pair_id,split (train, validation or test), for pairs whose split must not be drawn."""
    validation_share: float = 0.1
    """Share of the training scenes that is set aside for validation."""
    split_seed: int = 0
    """Seed of the draw of validation scenes."""
    pairs_per_shard: int = 64
    """Most pairs in one shard."""
    max_bad: float = 0.05
    """Share of broken pairs past which the job fails (what was written is kept)."""
    allow_truncated: bool = False
    """Use images without their end too, as far as they go."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """The low-light model (layout degrade)."""
    degrade_seed: int = 0
    """Seed of the low-light model."""
    against: str = ""
    """URL of another pair dataset; pairs that occur in both are reported (LOLv1 and LOLv2-real overlap)."""

    def __post_init__(self) -> None:
        make_absolute(self, "output", "source", "low", "normal", "splits", "against")
        folders = self.layout == "folders"
        require(
            bool((self.low or self.source) and self.normal) if folders else bool(self.source),
            "there is nothing to read: give --source URL, or --layout folders --low URL --normal URL",
        )
        if not folders:
            unused = f"layout {self.layout} has no use for it; use --layout folders"
            reject_unused(self, ("low", "normal", "pattern"), unused)
        if self.layout != "degrade":
            unused = f"layout {self.layout} has no use for it; use --layout degrade"
            reject_unused(self, ("degrade", "degrade_seed"), unused)
        require(
            0 <= self.validation_share < 1,
            f"validation_share is {self.validation_share}, but must be in [0, 1); 0.1 is usual",
        )
        require(self.pairs_per_shard >= 1, f"pairs_per_shard is {self.pairs_per_shard}, but must be at least 1")
        require(0 <= self.max_bad <= 1, f"max_bad is {self.max_bad}, but is a share and must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Run the teacher once over the pairs and cache its trajectories, before any refinement."""

    pairs: str
    """URL of the pair dataset."""
    teacher: str
    """URL of the teacher's weights: our .safetensors, or a released .pth."""
    output: str
    """URL under which each stage gets a folder STAGE-KEY."""
    stages: IntList = (16, 8, 4)
    """Teacher steps of each stage."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    records_per_shard: int = RECORDS_PER_SHARD
    """Most records in one trajectory shard."""
    batch_size: int = 32
    """Records per teacher evaluation; fixed, since it can show in the last bit."""
    precision: Precision = "fp32"
    """bf16 runs the teacher under autocast."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    verify: bool = False
    """Only re-check every checksum of the caches that are there."""

    def __post_init__(self) -> None:
        make_absolute(self, "pairs", "teacher", "output")
        check_stages(self.stages)
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, but must be at least 1")
        require(self.records_per_shard >= 1, f"records_per_shard is {self.records_per_shard}, but must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil the teacher into students of half its steps, stage by stage."""

    teacher: str
    """URL of the teacher's weights; every student starts from them."""
    output: str = ""
    """URL of the run: checkpoints, student-N.safetensors and report.json."""
    cache: str = ""
    """URL that precompute wrote to (its stage folders lie below); trajectories online and stream need none."""
    pairs: str = ""
    """URL of the pair dataset, for validation and for trajectories that are not cached."""
    stages: IntList = (16, 8, 4)
    """Teacher steps of each stage; its student has half as many."""
    progressive: bool = False
    """Each stage's student is the next stage's teacher (needs trajectories online)."""
    target: Target = "two-step"
    """What the student learns at the start of two teacher steps: to make both at once (two-step), or to give the clean
    image that its moving average gives at their end (consistency), after which it serves any number of steps."""
    rollout: int = 0
    """DDIM steps that the student makes itself to the image at which its teacher takes over, so that both see the
    student's errors (needs trajectories online); 0 adds noise to the ground truth. 2 is usual."""
    trajectories: Trajectories = "cache"
    """Where the teacher runs: once before (cache), in the trainer (online), or in actors beside it (stream)."""
    teacher_actors: int = 1
    """Teacher actors beside the trainers, each with as much as a worker has (trajectories stream)."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    refine_weight: float = 0.0
    """w of the refinement towards the reflectance; 0 is off, 0.02 is mild, and the paper has 0.8 (omega = 1 - w)."""
    reflectance: ReflectanceConfig = field(default_factory=ReflectanceConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    lpips: tuple[str, ...] = ()
    """URL of a VGG16 or AlexNet state dict for the perceptual term and, if wanted, of the LPIPS release's weights."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: TrainingComputeConfig = field(default_factory=TrainingComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: StudentTrackingConfig = field(default_factory=StudentTrackingConfig)

    def __post_init__(self) -> None:
        make_absolute(self, "cache", "teacher", "output", "pairs", "lpips")
        check_stages(self.stages)
        require(
            0 <= self.refine_weight <= 1,
            f"refine_weight is {self.refine_weight}, but must be in [0, 1]; the paper's omega 0.2 is 0.8",
        )
        require(
            not self.loss.perceptual or bool(self.lpips),
            f"loss.perceptual is {self.loss.perceptual}, but no backbone is given; add --lpips URL, or set it to 0",
        )
        require(
            not self.progressive or self.trajectories == "online",
            "progressive changes the teacher from stage to stage, but a cache holds one teacher's trajectories, and "
            "actors that stream read ahead of its training; add --trajectories online",
        )
        check_rollout(self.rollout)
        require(
            not self.rollout or self.trajectories == "online",
            f"rollout is {self.rollout}, but trajectories from a cache or a stream begin at the ground truth with "
            "noise, and not where the student is; add --trajectories online",
        )
        require(
            self.trajectories != "stream" or not self.compute.elastic,
            f"compute.workers is {self.compute.workers}, but trajectories stream need a fixed number; give one",
        )
        require(
            self.trajectories != "cache" or bool(self.cache),
            "cache is empty, but trajectories are to come from one; add --cache URL, or --trajectories online",
        )
        require(self.teacher_actors >= 1, f"teacher_actors is {self.teacher_actors}, but must be at least 1")
        require(
            self.trajectories == "cache" or bool(self.pairs),
            f"trajectories {self.trajectories} run the teacher over the pairs; add --pairs URL",
        )
        if self.trajectories != "cache":
            unused = f"trajectories {self.trajectories} read no cache; leave it out, or use --trajectories cache"
            reject_unused(self, ("cache",), unused)
        if self.trajectories != "stream":
            unused = f"trajectories {self.trajectories} use no teacher actors; add --trajectories stream"
            reject_unused(self, ("teacher_actors",), unused)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Search over the reflectance and loss weights; every trial reads the one shared cache."""

    distill: DistillConfig
    """What each trial runs, before its own values are put in; its output is where --then-distill distils to."""
    output: str
    """URL of the sweep."""
    trials: int = 16
    """Trials in all; a grid has as many as there are combinations."""
    trial_steps: int = 0
    """Optimizer steps per stage of a trial; 0 takes distill.optim.steps, the full length."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How values are chosen: Optuna's TPE, at random, or every combination of the choices."""
    space: tuple[str, ...] = ()
    """What is searched: KEY=uniform(a,b), loguniform(a,b) or choice(a,b,...), KEY being a dotted setting of distill;
    empty means refine_weight, loss.pixel, optim.learning_rate, and loss.perceptual where a backbone is given."""
    points: tuple[str, ...] = ()
    """Points to try first, each KEY=VALUE,KEY=VALUE; the settings of distill themselves come before them."""
    metric: str = "psnr"
    """Validation metric of the last stage to maximize, or a sum such as psnr+10*ssim-5*sharpness_gap."""
    seed: int = 0
    """Seed of the search."""
    concurrent: int = 0
    """Trials at a time; 0 derives it from the cluster's resources."""
    asha: bool = True
    """Stop poor trials early (ASHA)."""
    grace_steps: int = 0
    """Steps, over all stages, before a trial may be stopped; 0 takes a ninth of the trial."""
    then_distill: bool = False
    """Distil with the best values at full length afterwards, into distill.output."""

    def __post_init__(self) -> None:
        make_absolute(self, "output")
        if self.search == "grid":
            reject_unused(self, ("trials",), "a grid has as many trials as combinations; leave it out")
        require(bool(self.distill.output), "distill.output is empty, but is where best.toml distils to; give its URL")
        require(self.trials >= 1, f"trials is {self.trials}, but must be at least 1")
        require(self.asha or not self.grace_steps, "grace_steps is for asha, which is off; drop one of them")
        for name in ("trial_steps", "concurrent", "grace_steps"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, but must not be negative")
        require(
            bool(self.distill.pairs) and self.distill.checkpoint.validate_every > 0,
            "trials are compared on the validation split; give --distill.pairs URL and a "
            "--distill.checkpoint.validate-every above 0",
        )
        require(
            self.distill.trajectories != "stream",
            "trajectories stream would give every trial teacher actors of its own; use the cache that all share",
        )
