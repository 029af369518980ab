"""What precompute says before it begins, and when it cannot go on; what it makes is in test_pipeline.py."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.precompute import JOB
from pipelines import shards
from pipelines.config.jobs import IngestConfig, PrecomputeConfig
from pipelines.config.parts import ComputeConfig, SegmentConfig
from pipelines.pairs.ingest import ingest
from pipelines.trajectories.precompute import plan_precompute, precompute
from pipelines.weights import save_network
from reddit_core.networks.sr3_unet import UNet
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile


@pytest.fixture
def config(
    ray_cluster: None, make_lol_folder: Callable[[Path], Path], tmp_path: Path, tiny_unet: UNet
) -> PrecomputeConfig:
    """Eight training pairs in shards of three, and a network of random weights."""
    pairs, teacher = str(tmp_path / "pairs"), str(tmp_path / "teacher.safetensors")
    source = str(make_lol_folder(tmp_path / "LOLv1"))
    ingest(IngestConfig(source=source, output=pairs, validation_share=0, pairs_per_shard=3))
    save_network(teacher, NetworkFile(network=tiny_unet, schedule=NoiseSchedule(), facts={"role": "teacher"}))
    return PrecomputeConfig(
        pairs=pairs,
        teacher=teacher,
        output=str(tmp_path / "cache"),
        stages=(4, 2),
        segment=SegmentConfig(crop=16, crops=3),
        records_per_shard=5,
        batch_size=2,
    )


def test_the_plan_says_what_it_will_cost_and_writes_nothing(config: PrecomputeConfig) -> None:
    rows = plan_precompute(config).rows
    assert [row["stage"] for row in rows] == [4, 2]
    for row in rows:
        assert row["records"] == 24  # 8 pairs of 3 crops
        assert row["shards"] == row["missing"] == 2 + 2 + 2  # of 9, 9 and 6 records, at most 5 to a shard
        assert row["bytes"] == 24 * 18 * 16 * 16  # two crops of 3 bytes a pixel, two tensors of 6
        assert row["teacher_evaluations"] == 24 * 2
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
    shard = Path(shards.shard_url(config.pairs, shards.read_manifest(config.pairs, "pairs").shards[0]))
    data = shard.read_bytes()
    shard.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
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
