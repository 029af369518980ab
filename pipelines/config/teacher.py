"""Configuration of the teacher's training."""

from dataclasses import dataclass, field
from typing import Literal

from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    TrackingConfig,
    TrainingComputeConfig,
    TrainingLevels,
    check_brightness_jitter,
    check_min_scale,
    check_rollout,
    make_absolute,
    require,
)
from reddit_core.networks import NetworkConfig
from reddit_core.networks.film_unet import FilmUNetConfig
from reddit_core.networks.local_curve import LocalCurveConfig
from reddit_core.networks.sr3_unet import UNetConfig
from reddit_core.schedule import NoiseSchedule

# The part of TeacherConfig that holds the config of each kind of network.
NETWORK_PARTS = {"film-unet": "film", "sr3-unet": "unet", "local-curve": "curve"}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train the many-step diffusion teacher on pair shards."""

    pairs: str
    """URL of the pair dataset."""
    output: str
    """URL of the run: checkpoints, teacher.safetensors and report.json."""
    network: Literal["film-unet", "sr3-unet", "local-curve"] = "film-unet"
    """Kind of network: film-unet predicts the clean image and is told the exposure gain; sr3-unet is as released;
    local-curve is a light regressor, with levels noisiest."""
    film: FilmUNetConfig = field(default_factory=FilmUNetConfig)
    """The network, if it is a film-unet."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """The network, if it is an sr3-unet."""
    curve: LocalCurveConfig = field(default_factory=LocalCurveConfig)
    """The network, if it is a local-curve."""
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    """The noise schedule; recorded with the weights."""
    ssim: float = 0.0
    """Weight of 1 - SSIM of the clean image that the output stands for, beside the squared error; 0.1 is usual."""
    detail: float = 0.0
    """Weight of a term that asks for as much fine detail as the ground truth has, times the level's share of signal
    (alpha_bar), so that detail is made in the last of many steps; 0.1 is usual, late in training."""
    levels: TrainingLevels = "all"
    """Noise levels of the training inputs: all, or noisiest, where every input is pure noise, as in the first step of
    sampling. A network of one step results that regresses on the low-light image alone: a control, and no diffusion."""
    rollout: int = 0
    """DDIM steps that the network makes itself, from a noisier level, to the noisy image that it is trained on, so that
    it learns to correct its own errors; 0 adds noise to the ground truth. 2 is usual, late in training."""
    init: str = ""
    """URL of our .safetensors of the same network and schedule to start from; empty starts at random."""
    crop: int = 96
    """Side of the training crops in pixels."""
    crops_per_image: int = 8
    """Crops taken from each decoded image; more decode less, fewer mix better."""
    min_scale: float = 1.0
    """Each crop is cut from its image reduced to a scale drawn log-uniformly from [min_scale, 1]."""
    brightness_jitter: float = 0.0
    """Each normal-light crop is made brighter or darker by a factor drawn log-uniformly from exp(-jitter) to
    exp(jitter), and the exposure gain with it; 0.2 is usual, for networks that are told the gain."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: TrainingComputeConfig = field(default_factory=TrainingComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation_steps: int = 16
    """DDIM steps at validation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        make_absolute(self, "pairs", "output", "init")
        for kind, part in NETWORK_PARTS.items():
            config = getattr(self, part)
            require(
                self.network == kind or config == type(config)(),
                f"{part} has settings, but the network is {self.network}; leave them out, or add --network {kind}",
            )
        multiple = self.network_config.size_multiple
        require(
            self.crop > 0 and self.crop % multiple == 0,
            f"crop is {self.crop}, but must be a positive multiple of the network's {multiple}",
        )
        for name in ("ssim", "detail"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}, but must not be negative; 0 leaves the term out")
        check_rollout(self.rollout)
        if self.levels == "noisiest":
            self.check_regression()
        require(self.crops_per_image >= 1, f"crops_per_image is {self.crops_per_image}, but must be at least 1")
        check_min_scale(self.min_scale)
        check_brightness_jitter(self.brightness_jitter, self.network_config)

    def check_regression(self) -> None:
        """Rejects what a network for one step from pure noise has no use for."""
        prediction = self.network_config.prediction
        require(
            prediction == "x",
            f"levels is noisiest, but the network predicts {prediction}, of which pure noise teaches nothing; use a "
            "network that predicts x, such as film-unet",
        )
        require(
            not self.rollout,
            f"rollout is {self.rollout}, but levels noisiest has no noisier level to begin one at; leave it out",
        )
        require(
            self.validation_steps == 1,
            f"validation_steps is {self.validation_steps}, but levels noisiest trains for one step alone; add "
            "--validation-steps 1",
        )

    @property
    def network_config(self) -> NetworkConfig:
        """The config of the chosen kind of network."""
        config: NetworkConfig = getattr(self, NETWORK_PARTS[self.network])
        return config
