"""What sweeps are tested on: a short distillation of one stage from the tiny caches."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, StudentTrackingConfig
from tests.ray.tiny import Tiny


@dataclass(frozen=True)
class Inputs:
    """A folder for the sweeps' outputs, and what they distil from."""

    root: Path
    tiny: Tiny

    def distillation(self, **changes: Any) -> DistillConfig:
        config = self.tiny.distillation(
            self.root / "best",
            stages=(4,),
            refine_weight=0.4,
            optim=OptimConfig(steps=6, batch_size=4, warmup_steps=1, ema_decay=0.5, learning_rate=1e-3),
            checkpoint=CheckpointConfig(every=2, validate_every=2, validation_images=1, validation_crop=32),
            tracking=StudentTrackingConfig(),
        )
        return replace(config, **changes)


@pytest.fixture(scope="module")
def inputs(tiny_cache: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("tune"), tiny_cache)
