"""Kills during precompute: whatever dies, the shards end with the same bytes, none missing and none twice."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import cluster, shards
from pipelines.config.jobs import PrecomputeConfig
from pipelines.config.parts import SegmentConfig
from pipelines.trajectories.precompute import precompute
from tests.ray.files import contents
from tests.ray.processes import PATIENCE_S, ROOT, started, wait_until
from tests.ray.tiny import NUM_TRAIN, Tiny

CROPS, NUM_SHARDS = 40, 20


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    """A cache of twenty shards that was made without trouble."""
    output = str(tmp_path_factory.mktemp("kills") / "whole")
    config = tiny.precompute(
        output=output,
        stages=(4,),
        segment=SegmentConfig(crop=32, crops=CROPS),
        records_per_shard=12,
        batch_size=4,
    )
    precompute(config)
    return config


def num_shards(config: PrecomputeConfig) -> int:
    return len(list(Path(config.output).rglob("shards/*.json")))


def check_same(config: PrecomputeConfig, whole: PrecomputeConfig) -> None:
    """The same files with the same bytes, and every record in them once."""
    assert contents(config.output) == contents(whole.output)
    seeds = [
        seed
        for url in Path(config.output).glob("*-*")
        for entry in shards.read_manifest(str(url), "trajectories").shards
        for seed in shards.read_shard(str(url), entry).column("seed").to_pylist()
    ]
    assert len(seeds) == len(set(seeds)) == NUM_TRAIN * CROPS


def test_a_killed_teacher_actor_is_replaced(whole: PrecomputeConfig, tmp_path: Path) -> None:
    config = replace(whole, output=str(tmp_path / "cache"))
    job = threading.Thread(target=precompute, args=(config,))
    job.start()
    wait_until(lambda: num_shards(config) >= 3, job.is_alive)
    (actor,) = started("TeacherActor")
    actor.kill()
    done = num_shards(config)
    job.join(PATIENCE_S)
    assert not job.is_alive() and done < NUM_SHARDS
    check_same(config, whole)


@pytest.mark.slow
def test_several_rounds_make_the_same_shards(
    whole: PrecomputeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ROUND", 8)
    config = replace(whole, output=str(tmp_path / "cache"))
    precompute(config)
    check_same(config, whole)


@pytest.mark.slow
def test_the_rest_of_the_cluster_takes_over_from_a_killed_node(whole: PrecomputeConfig, tmp_path: Path) -> None:
    config = replace(whole, output=str(tmp_path / "cache"))
    arguments = [sys.executable, "-m", "tests.ray.lose_a_node", config.pairs, config.teacher, config.output]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    (done,) = re.findall(r"killed the node after (\d+) shards", result.stdout)
    assert int(done) < NUM_SHARDS, "it was killed when there was nothing left to do"
    check_same(config, whole)
