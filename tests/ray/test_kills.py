"""Kills during precompute: whatever dies, the shards end with the same bytes, none missing and none twice."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import cluster, shards
from pipelines.config.jobs import IngestConfig, PrecomputeConfig
from pipelines.config.parts import ComputeConfig, SegmentConfig
from pipelines.pairs.ingest import ingest
from pipelines.trajectories.precompute import precompute
from pipelines.weights import save_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile
from tests.ray.processes import started

UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def whole(
    ray_cluster: None, make_lol_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> PrecomputeConfig:
    """A cache of forty shards that was made without trouble."""
    root = tmp_path_factory.mktemp("kills")
    source = make_lol_folder(root / "LOLv1")
    ingest(IngestConfig(source=str(source), output=str(root / "pairs"), validation_share=0.25))
    torch.manual_seed(0)
    teacher = NetworkFile(network=UNet(UNET), schedule=NoiseSchedule(), facts={"role": "teacher"})
    save_network(str(root / "teacher.safetensors"), teacher)
    config = PrecomputeConfig(
        pairs=str(root / "pairs"),
        teacher=str(root / "teacher.safetensors"),
        output=str(root / "whole"),
        stages=(4, 2),
        segment=SegmentConfig(crop=32, crops=40),
        records_per_shard=12,
        batch_size=4,
        compute=ComputeConfig(threads=1),
    )
    precompute(config)
    return config


def contents(config: PrecomputeConfig) -> dict[str, bytes]:
    root = Path(config.output)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/**/*") if path.is_file()}


def wait_for_shards(config: PrecomputeConfig, number: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(list(Path(config.output).rglob("shards/*.json"))) < number:
        assert time.monotonic() < deadline, "no shards came"
        time.sleep(0.01)


def check_same(config: PrecomputeConfig, whole: PrecomputeConfig) -> None:
    """The same files with the same bytes, and every record in them once."""
    assert contents(config) == contents(whole)
    seeds = [
        seed
        for url in Path(config.output).glob("*-*")
        for entry in shards.read_manifest(str(url), "trajectories").shards
        for seed in shards.read_shard(str(url), entry).column("seed").to_pylist()
    ]
    assert len(seeds) == len(set(seeds)) == 2 * 6 * 40


def test_a_killed_teacher_actor_is_replaced(whole: PrecomputeConfig, tmp_path: Path) -> None:
    config = replace(whole, output=str(tmp_path / "cache"))
    job = threading.Thread(target=precompute, args=(config,))
    job.start()
    wait_for_shards(config, 3)
    (actor,) = started("TeacherActor")
    actor.kill()
    done = len(list(Path(config.output).rglob("shards/*.json")))
    job.join(TIMEOUT_S)
    assert not job.is_alive() and done < 40
    check_same(config, whole)


@pytest.mark.slow
def test_several_rounds_make_the_same_shards(
    whole: PrecomputeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ROUND", 15)
    config = replace(whole, output=str(tmp_path / "cache"))
    precompute(config)
    check_same(config, whole)


@pytest.mark.slow
def test_the_rest_of_the_cluster_takes_over_from_a_killed_node(whole: PrecomputeConfig, tmp_path: Path) -> None:
    config = replace(whole, output=str(tmp_path / "cache"))
    script = Path(__file__).with_name("lose_a_node.py")
    arguments = [sys.executable, str(script), config.pairs, config.teacher, config.output]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    (done,) = re.findall(r"killed the node after (\d+) shards", result.stdout)
    assert int(done) < 40, "it was killed when there was nothing left to do"
    check_same(config, whole)
