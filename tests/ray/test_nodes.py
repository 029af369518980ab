"""Three nodes with S3 as their only shared storage; one is killed and one joins while jobs run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config.jobs import IngestConfig, PrecomputeConfig
from pipelines.config.parts import ComputeConfig, SegmentConfig
from pipelines.pairs.ingest import ingest
from pipelines.trajectories.precompute import precompute
from pipelines.weights import load_network, save_network
from reddit_core.networks.sr3_unet import UNet
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile
from tests.ray.processes import ROOT

pytestmark = [pytest.mark.s3, pytest.mark.slow]
TIMEOUT_S = 1200


@pytest.mark.timeout(TIMEOUT_S + 300)
def test_nodes_that_share_nothing_but_s3_come_and_go(
    s3: Any, ray_cluster: None, make_lol_folder: Callable[[Path], Path], tmp_path: Path, tiny_unet: UNet
) -> None:
    s3.upload(make_lol_folder(tmp_path / "LOLv1"), "LOLv1")
    ingest(IngestConfig(source="s3://data/LOLv1", output="s3://data/pairs", validation_share=0.25))
    teacher = "s3://data/teacher.safetensors"
    save_network(teacher, NetworkFile(network=tiny_unet, schedule=NoiseSchedule(), facts={"role": "teacher"}))
    precompute(
        PrecomputeConfig(
            pairs="s3://data/pairs",
            teacher=teacher,
            output="s3://data/whole",
            stages=(4,),
            segment=SegmentConfig(crop=32, crops=40),
            records_per_shard=12,
            batch_size=4,
            compute=ComputeConfig(threads=1),
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.changing_nodes", str(tmp_path / "LOLv1")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert "machines 3" in done.stdout and done.stderr.count("a local path, but the cluster's machines") == 2
    assert done.stdout.count("changed after") == 1 and "changed while training" in done.stdout
    whole, changed = (
        {name: data for name, data in s3.objects(f"{folder}/").items() if name != "report.json"}
        for folder in ("whole", "changed")
    )
    assert changed == whole and len(whole) > 40
    weights = load_network("s3://data/students/student-2.safetensors").network.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not list(tmp_path.glob("runs/*"))
