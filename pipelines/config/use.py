"""Configurations of the jobs that evaluate, use, export and convert weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines import formats, storage
from pipelines.config.parts import (
    ComputeConfig,
    IntList,
    Split,
    TrackingConfig,
    make_absolute,
    reject_unused,
    require,
)
from reddit_core.precision import Precision
from reddit_core.sampler import DdimMode
from reddit_core.student import MOST_DEVIATION, TILES

# In a checkout, and in what ray job submit uploads of one; a wheel has no weights.
DEFAULT_STUDENT = Path(__file__).parents[2] / "weights" / "lol-student-2.safetensors"

# The opsets that torch's exporter can write these networks in.
OPSETS = (16, 23)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure weights on a split of the pairs, raw and GT-mean side by side."""

    pairs: str
    """URL of the pair dataset."""
    output: str
    """URL of the report."""
    weights: tuple[str, ...] = ()
    """Weights to evaluate, each as NAME:STEPS=URL, such as student:2=runs/demo/distill/student-2.safetensors."""
    shown: tuple[str, ...] = ()
    """Methods in before_after.png as NAME:STEPS, such as input:0 student:2; empty shows all."""
    split: Split = "validation"
    """Split of the pairs that is used."""
    seeds: IntList = (0,)
    """Seeds of the sampler's noise."""
    limit: int = 0
    """Only the first so many images; 0 takes all."""
    mode: DdimMode = "exact"
    """The sampler: exact, or as released."""
    lpips: tuple[str, ...] = ()
    """URLs of VGG16 and AlexNet state dicts, for LPIPS over each, and of the LPIPS release's weights (lin0 to lin4);
    without those, a backbone's figure is called uniform, and is not that of publications."""
    precision: Precision = "fp32"
    """bf16 runs networks under autocast."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        make_absolute(self, "pairs", "output", "lpips")
        require(bool(self.seeds), "seeds is empty, but at least one is needed; use 0 or 0,1,2")
        require(self.limit >= 0, f"limit is {self.limit}, but must not be negative; 0 takes all images")
        parts = (text.partition("=") for text in self.weights)
        absolute = tuple(f"{head}={storage.resolve(url)}" if url else head for head, _, url in parts)
        object.__setattr__(self, "weights", absolute)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A student, and how it enhances photographs."""

    weights: str = ""
    """URL of the student's weights; empty takes the 2-step student that comes with the code, trained on LOL-v1."""
    steps: int = 0
    """Sampling steps; 0 takes the number that the weights were distilled for."""
    brightness: float | Literal["auto"] = "auto"
    """Mean luma that every result shall have, in (0, 1); auto takes what the weights were trained on."""
    contrast: float | Literal["auto"] = "auto"
    """Standard deviation of every result's luma; auto takes what such photographs have in training."""
    tile: int = 0
    """Side of the tiles that larger photographs are split into. 0 takes what needs up to 4 GB a worker: with the
    default network one piece up to 12.5 megapixels, and tiles of 2,048 pixels beyond; 1024 needs a tenth of that."""
    overlap: int = 64
    """Pixels over which neighbouring tiles are blended, at most a quarter of a tile."""
    precision: Precision = "fp32"
    """bf16 runs networks under autocast."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if not self.weights:
            require(
                DEFAULT_STUDENT.exists(),
                f"no weights are given, and there are none at {DEFAULT_STUDENT}; add --weights URL",
            )
            object.__setattr__(self, "weights", str(DEFAULT_STUDENT))
        make_absolute(self, "weights")
        require(self.steps >= 0, f"steps is {self.steps}, but must be at least 1; 0 takes what the weights say")
        require(
            self.brightness == "auto" or 0 < self.brightness < 1,
            f"brightness is {self.brightness}, but must be auto, or a mean luma in (0, 1); 0.45 is usual",
        )
        require(
            self.contrast == "auto" or 0 < self.contrast <= MOST_DEVIATION,
            f"contrast is {self.contrast}, but must be auto, or a standard deviation of luma in (0, {MOST_DEVIATION}]; "
            "0.19 is usual",
        )
        require(
            self.tile == 0 or self.tile >= 64,
            f"tile is {self.tile}, but must be at least 64 pixels, or 0 to choose by size; 1024 is usual",
        )
        side = self.tile or TILES[-1]
        require(
            0 <= self.overlap <= side // 4,
            f"overlap is {self.overlap}, but must be between 0 and a quarter of the tile's {side}; 64 is usual",
        )

    @property
    def asked_tone(self) -> dict[str, Any]:
        """Brightness and contrast by name, without those that are auto."""
        asked = {"brightness": self.brightness, "contrast": self.contrast}
        return {name: value for name, value in asked.items() if value != "auto"}


@dataclass(frozen=True, kw_only=True)
class EnhanceConfig(StudentConfig):
    """Enhance a photograph, a folder or a bucket of them."""

    source: str
    """URL of a photograph or a folder."""
    output: str
    """URL of the folder to write to; for one photograph also of its result, such as better.jpg."""
    seed: int = 0
    """Seed of the sampler's noise."""
    compare: bool = False
    """Also write the input and the result side by side."""
    allow_truncated: bool = False
    """Enhance photographs without their end too, as far as they go."""
    max_megapixels: float = 250.0
    """Largest photograph; a megapixel needs about 30 MB of memory, twice that with 16 bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, "source", "output")
        require(self.max_megapixels > 0, f"max_megapixels is {self.max_megapixels}, but must be above 0; 250 is usual")
        require(
            formats.format_of(self.output) != "RAW",
            f"output is {self.output}, but RAW files cannot be written; name a .tif, .png or .jpg",
        )

    @property
    def writes_one_file(self) -> bool:
        """Whether the output is a file, by its extension, and not a folder."""
        return bool(formats.format_of(self.output))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a student with its sampler unrolled: ONNX and torch.export, checked against torch."""

    weights: str
    """URL of the student's weights."""
    output: str
    """URL of the folder to write student.onnx, student.pt2 and the model card to."""
    steps: int = 0
    """Sampling steps; 0 takes the number that the weights were distilled for."""
    host: bool = False
    """Write instead a model for other programs, such as darktable: from an image in [0, 1] to an image in [0, 1]."""
    gain: float = 0.0
    """Exposure gain of every image that such a program hands over, so that its tiles agree; 0 takes for each the one
    that leads to the weights' brightness."""
    opset: int = 20
    """Version of ONNX's operators; an older runtime may need a lower one (ONNX Runtime 1.12 reads 17)."""

    def __post_init__(self) -> None:
        make_absolute(self, "weights", "output")
        lowest, highest = OPSETS
        require(lowest <= self.opset <= highest, f"opset is {self.opset}, but must be from {lowest} to {highest}")
        require(self.steps >= 0, f"steps is {self.steps}, but must be at least 1; 0 takes what the weights say")
        require(self.gain >= 0, f"gain is {self.gain}, but must be above 0; 8 suits a photograph 3 stops too dark")
        if not self.host:
            reject_unused(self, ("gain",), "it is used with --host only; add that, or leave it out")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a released .pth, once, into safetensors that every job reads."""

    weights: str
    """URL of the released .pth."""
    output: str
    """URL of the folder to write weights.safetensors to."""
    norm_groups: int = 32
    """GroupNorm groups of the network, which a .pth does not record."""
    steps: int = 0
    """Sampling steps that the network was distilled for, recorded with the weights; 0 records none."""

    def __post_init__(self) -> None:
        make_absolute(self, "weights", "output")
        require(self.norm_groups >= 1, f"norm_groups is {self.norm_groups}, but must be at least 1; 32 is usual")
        require(self.steps >= 0, f"steps is {self.steps}, but must be at least 1; 0 records none")
