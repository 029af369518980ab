"""What an experiment refuses when it is configured."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.config.experiments import ExperimentConfig
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import StudentTrackingConfig
from reddit_core.degrade import DegradeConfig

DISTILL = DistillConfig(cache="c", teacher="t", pairs="p")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"experiment": "darkness", "stops": (2.0, -1.0)},
            r"stops run from -1\.0 to -1\.0, but must rise from at least 0",
        ),
        (
            {"experiment": "darkness", "full_wells": (2000.0, 0.0)},
            r"full_well is 0\.0 .*but electrons must be positive",
        ),
        ({"refine_weight": 0.0}, r"refine_weight is 0\.0, but must be above 0 and at most 1; 0\.02 is mild"),
        (
            {"distill": replace(DISTILL, refine_weight=0.1)},
            r"distill\.refine_weight is 0\.1, but experiment refinement compares .*; give --refine-weight",
        ),
        (
            {"experiment": "steps", "refine_weight": 0.1},
            r"refine_weight is 0\.1, but experiment steps has one kind of student; give --distill\.refine-weight",
        ),
        (
            {"stops": (2.0,)},
            r"stops is \(2\.0,\), but experiment refinement has no use for it; use --experiment darkness",
        ),
        (
            {"experiment": "darkness", "degrade": DegradeConfig(full_well=1e3)},
            r"degrade\.full_well is 1000\.0, but the exp",
        ),
        ({"distill": replace(DISTILL, output="o")}, r"distill\.output is .*, but an experiment distils below its own"),
        (
            {"distill": replace(DISTILL, tracking=StudentTrackingConfig(model="m"))},
            r"distill\.tracking\.model is m, but an experiment registers no model; leave it out",
        ),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentConfig(**{"distill": DISTILL, "output": "o", **settings})


def test_other_experiments_need_no_refinement() -> None:
    config = ExperimentConfig(distill=DISTILL, output="o", experiment="darkness", stops=(2.0,), full_wells=(2e4, 2e3))
    assert {name: (model.stops, model.full_well) for name, model in config.exposures().items()} == {
        "2-stops-20000-electrons": ((2.0, 2.0), 2e4),
        "2-stops-2000-electrons": ((2.0, 2.0), 2e3),
    }
