"""The configuration of the experiments: what is distilled, how often, and on what it is judged."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from pipelines import storage
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import IntList, make_absolute, require
from reddit_core.degrade import DegradeConfig


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Run one of the paper's experiments, from the trajectory cache to a report."""

    distill: DistillConfig
    """What every student is distilled with, before what the experiment changes; its output is not used."""
    output: str
    """URL of the students, which serve all experiments, and of EXPERIMENT/report.json, its plot and its reports."""
    experiment: Literal["refinement", "steps", "darkness"] = "refinement"
    """refinement: students with and without it; steps: each student against its teacher; darkness: the students on the
    validation split's normal images, darkened beyond what the teacher was trained on."""
    seeds: IntList = (0, 1, 2)
    """Seeds of the students."""
    limit: int = 0
    """Judge only the first so many images of the validation split; 0 takes all."""
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
        require(bool(self.distill.pairs), "students are judged on the validation split; give --distill.pairs URL")
        require(
            self.experiment != "refinement" or self.distill.refine_weight != 0,
            "distill.refine_weight is 0, so that no student would be refined; give one, such as 0.02",
        )
        self.exposures()  # refuses what no exposure can be

    @property
    def folder(self) -> str:
        """URL of what the experiment shows."""
        return storage.join(self.output, self.experiment)

    def exposures(self) -> dict[str, DegradeConfig]:
        """The low-light model of each darkness and noise, by name."""
        return {
            exposure_name(stops, full_well): replace(self.degrade, stops=(stops, stops), full_well=full_well)
            for stops, full_well in product(self.stops, self.full_wells)
        }


def exposure_name(stops: float, full_well: float) -> str:
    """What the pairs of one darkness and noise are called."""
    return f"{stops:g}-stops-{full_well:g}-electrons"
