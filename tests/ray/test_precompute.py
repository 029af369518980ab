"""What precompute says before it begins, and when it cannot resume; what it makes is in test_pipeline.py."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.precompute import JOB
from pipelines import shards
from pipelines.config.jobs import PrecomputeConfig
from pipelines.config.parts import ComputeConfig
from pipelines.trajectories.precompute import plan_precompute, precompute
from tests.ray.files import flip_bit
from tests.ray.tiny import Tiny


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> PrecomputeConfig:
    """Pairs that the test may change, and an output where nothing is."""
    pairs = shutil.copytree(tiny.pairs, tmp_path / "pairs")
    return tiny.precompute(pairs=str(pairs), output=str(tmp_path / "cache"))


def test_the_plan_says_what_it_will_cost_and_writes_nothing(config: PrecomputeConfig) -> None:
    rows = plan_precompute(config).rows
    assert [row["stage"] for row in rows] == [4, 2]
    for row in rows:
        assert row["records"] == 18  # 6 pairs of 3 crops
        assert row["shards"] == row["missing"] == 2 + 2  # of 9 and 9 records, at most 5 to a shard
        assert row["bytes"] == 18 * 18 * 16 * 16  # two crops of 3 bytes a pixel, two tensors of 6
        assert row["teacher_evaluations"] == 18 * 2
        assert 0 < row["hours"] < 1
    assert not Path(config.output).exists()


def test_what_ray_has_no_room_for_is_refused_before_it_is_waited_for(config: PrecomputeConfig) -> None:
    with pytest.raises(ValueError, match="the workers reserve 1000 CPUs, and loading their data needs 1 more"):
        precompute(replace(config, compute=ComputeConfig(workers=1000, gpu="no")))
    with pytest.raises(ValueError, match="1000 workers need a GPU each"):
        precompute(replace(config, compute=ComputeConfig(workers=1000, gpu="yes")))
    assert not Path(config.output).exists()


def test_a_damaged_pair_shard_is_one_line_and_status_2_and_a_lost_one_too(
    config: PrecomputeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = shards.read_manifest(config.pairs, "pairs").shards
    shard = Path(shards.shard_url(config.pairs, next(entry for entry in entries if entry.split == "train")))
    flip_bit(shard)
    flags = f"--pairs {config.pairs} --teacher {config.teacher} --output {config.output} --stages 4 --segment.crop 16"
    with pytest.raises(SystemExit) as stop:
        main(JOB, flags.split())
    assert stop.value.code == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"error: {shard} is damaged: its SHA-256 is not the committed")
    shard.unlink()
    with pytest.raises(
        OSError, match=rf"^storage failed during precompute [^\n]*{shard.stem}[^\n]*run the same command"
    ):
        precompute(config)
