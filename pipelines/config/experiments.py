"""Configuration of the experiments."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from pipelines import storage
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import IntList, make_absolute, reject_unused, require
from reddit_core.degrade import DegradeConfig


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Run one of the paper's experiments, from the trajectory cache to a report."""

    distill: DistillConfig
    """Settings of every student, before what the experiment changes; it sets output itself, and registers no model."""
    output: str
    """URL of the students, which all experiments share, and of EXPERIMENT/report.json, its plot and its reports."""
    experiment: Literal["refinement", "steps", "darkness"] = "refinement"
    """refinement: students with and without it; steps: each student against its teacher; darkness: the students on the
    validation split's normal images, darkened beyond what the teacher was trained on."""
    refine_weight: float = 0.02
    """w of the refined students (experiment refinement)."""
    seeds: IntList = (0, 1, 2)
    """Seeds of the students."""
    limit: int = 0
    """Evaluate on the first so many images of the validation split only; 0 takes all."""
    stops: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    """Darkness in photographic stops (experiment darkness)."""
    full_wells: tuple[float, ...] = (20_000.0, 2_000.0)
    """Electrons of a white pixel, at each darkness; fewer are noisier (experiment darkness)."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """The rest of the low-light model (experiment darkness)."""
    degrade_seed: int = 0
    """Seed of the low-light model."""

    def __post_init__(self) -> None:
        make_absolute(self, "output")
        require(bool(self.seeds), "seeds is empty, but at least one is needed; use 0 or 0,1,2")
        require(bool(self.stops), "stops is empty, but at least one darkness is needed; use 4 or 2 4 6")
        require(bool(self.full_wells), "full_wells is empty, but at least one noise is needed; use 20000 or 20000 2000")
        require(self.limit >= 0, f"limit is {self.limit}, but must not be negative; 0 takes all images")
        require(bool(self.distill.pairs), "students are evaluated on the validation split; give --distill.pairs URL")
        if self.experiment == "refinement":
            require(
                0 < self.refine_weight <= 1,
                f"refine_weight is {self.refine_weight}, but must be above 0 and at most 1; 0.02 is mild",
            )
            unused = "experiment refinement compares students with and without it; give --refine-weight"
            reject_unused(self.distill, ("refine_weight",), unused, "distill.")
        else:
            unused = f"experiment {self.experiment} has one kind of student; give --distill.refine-weight"
            reject_unused(self, ("refine_weight",), unused)
        unused = "an experiment distils below its own output; leave it out, and give --output URL"
        reject_unused(self.distill, ("output",), unused, "distill.")
        unused = "an experiment registers no model; leave it out"
        reject_unused(self.distill.tracking, ("model",), unused, "distill.tracking.")
        unused = "the experiment sets it from --stops and --full-wells; give those"
        reject_unused(self.degrade, ("stops", "full_well"), unused, "degrade.")
        if self.experiment != "darkness":
            unused = f"experiment {self.experiment} has no use for it; use --experiment darkness"
            reject_unused(self, ("stops", "full_wells", "degrade", "degrade_seed"), unused)
        self.exposures()  # rejects exposures that cannot be

    @property
    def folder(self) -> str:
        """URL of the experiment's report and plot."""
        return storage.join(self.output, self.experiment)

    def exposures(self) -> dict[str, DegradeConfig]:
        """The low-light model of each darkness and noise, by name."""
        return {
            exposure_name(stops, full_well): replace(self.degrade, stops=(stops, stops), full_well=full_well)
            for stops, full_well in product(self.stops, self.full_wells)
        }


def exposure_name(stops: float, full_well: float) -> str:
    """Name of the pair dataset of one darkness and noise."""
    return f"{stops:g}-stops-{full_well:g}-electrons"
