"""A sweep: its config, and everything that follows from the config alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from pipelines import storage, tracking
from pipelines.config.jobs import DistillConfig, TuneConfig
from pipelines.config.parts import require
from pipelines.search.space import (
    METRICS,
    Dimension,
    SweepObjective,
    Values,
    base_point,
    default_space,
    grid_points,
    parse_objective,
    parse_points,
    parse_space,
    with_values,
)
from pipelines.tracking import RunHandle
from pipelines.training.validation import LPIPS

TRIALS = "trials"
# Keys of the results that a trial reports to Tune: the global step, and the objective of the sweep.
STEP, OBJECTIVE = "step", "objective"


@dataclass(frozen=True)
class Sweep:
    """A sweep's config with the parsed space, objective and points; pickled to every trial.

    Raises:
        ValueError: by the properties, if the space, points or metric cannot be used.
    """

    config: TuneConfig

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        base = self.config.distill
        return parse_space(self.config.space or default_space(base), base)

    @cached_property
    def objective(self) -> SweepObjective:
        return parse_objective(self.config.metric, self.metrics)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that a trial's validation measures."""
        return (*METRICS, LPIPS) if self.config.distill.lpips else METRICS

    @cached_property
    def first_points(self) -> list[Values]:
        """The points that are tried before the search chooses any: all points of a grid."""
        base, dimensions, config = self.config.distill, self.dimensions, self.config
        if config.search == "grid":
            require(not config.points, "points are for tpe and random, since a grid has every combination; drop one")
            return grid_points(dimensions)
        points = base_point(dimensions, base) + parse_points(config.points, dimensions, base)
        require(
            len(points) <= config.trials,
            f"trials is {config.trials}, but {len(points)} points are to be tried first (the distillation's own values "
            "are one); raise --trials, or give fewer --points",
        )
        return points

    @property
    def num_trials(self) -> int:
        return len(self.first_points) if self.config.search == "grid" else self.config.trials

    @property
    def steps_per_stage(self) -> int:
        return self.config.trial_steps or self.config.distill.optim.steps

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a whole trial, over all stages."""
        return self.steps_per_stage * len(self.config.distill.stages)

    def is_validated(self, step: int) -> bool:
        """Whether a trial validates exactly at this global step."""
        step_of_stage = (step - 1) % self.steps_per_stage + 1
        every = self.config.distill.checkpoint.validate_every
        return step_of_stage % every == 0 or step_of_stage == self.steps_per_stage

    def trial_config(self, trial_id: str, values: Mapping[str, Any]) -> DistillConfig:
        """The distillation of a trial, with an output of its own."""
        base = self.config.distill
        return replace(
            with_values(base, {**values, "optim.steps": self.steps_per_stage}),
            output=storage.join(self.config.output, TRIALS, trial_id),
        )

    def trial_run(self, trial_id: str, values: Mapping[str, Any], parent: RunHandle) -> RunHandle:
        """The handle of the trial's run, a child of the sweep's; the same run in every process."""
        if parent.request is None:
            return parent
        config = self.trial_config(trial_id, values)
        where = replace(config.tracking, uri=parent.uri)
        inputs = parent.request.inputs  # all trials read the inputs of the sweep
        tags = {**parent.request.tags, "reddit.job": "distill", "reddit.trial": trial_id}
        return tracking.plan_run(where, config.output, asdict(config), tags=tags, inputs=inputs, parent=parent)

    def full_config(self, values: Mapping[str, Any]) -> DistillConfig:
        """The distillation of `--then-distill`: a trial's values at full length."""
        return with_values(self.config.distill, values)
