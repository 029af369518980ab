"""What a training run is resumed by: its settings and what its inputs hold, wherever they lie."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config.jobs import DistillConfig, TuneConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.search import outcome
from pipelines.training import runs
from pipelines.training.order import Order
from pipelines.training.stream import StageRecords, Stream
from pipelines.trajectories.caches import CachedRecords
from reddit_core.networks.local_curve import LocalCurveConfig


def stream_of(key: str) -> Stream:
    stage = StageRecords(order=Order(shard_rows=(1,), seed=0), load=CachedRecords("", ()), source="", key=key)
    return Stream(stages=[stage], steps=1, batch_size=1, row_bytes=1)


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    (tmp_path / "vgg.pth").write_bytes(b"a backbone")
    return DistillConfig(
        cache="s3://old/cache",
        teacher="s3://old/teacher",
        pairs="s3://old/pairs",
        output=str(tmp_path / "run"),
        lpips=(str(tmp_path / "vgg.pth"),),
    )


def test_inputs_may_move_to_another_disk_or_bucket(tmp_path: Path, config: DistillConfig) -> None:
    moved_backbone = tmp_path / "moved.pth"
    moved_backbone.write_bytes(b"a backbone")
    moved = replace(config, cache="/new/c", teacher="/new/t", pairs="/new/p", lpips=(str(moved_backbone),))
    first = runs.record_config(config.output, config, stream_of("abc"))
    assert runs.record_config(config.output, moved, stream_of("abc")) == first
    assert "old/teacher" in json.loads(Path(config.output, "config.json").read_text())["teacher"]
    sweep = TuneConfig(distill=config, output=str(tmp_path / "sweep"))
    outcome.record_settings(sweep, stream_of("abc"))
    outcome.record_settings(replace(sweep, distill=moved), stream_of("abc"))


def test_settings_that_came_later_are_recorded_only_where_they_are_used(tmp_path: Path) -> None:
    config = TeacherConfig(pairs="s3://old/pairs", output=str(tmp_path / "run"))
    runs.record_config(config.output, config, stream_of("abc"))
    assert not {"levels", "curve"} & json.loads(Path(config.output, "config.json").read_text()).keys()
    regressor = replace(config, levels="noisiest", validation_steps=1)
    with pytest.raises(ValueError, match="levels is None, asked for 'noisiest'"):
        runs.record_config(config.output, regressor, stream_of("abc"))
    light = replace(regressor, network="local-curve")
    assert runs.recorded_settings(light)["levels"] == "noisiest" and "curve" not in runs.recorded_settings(light)
    wider = replace(light, curve=LocalCurveConfig(channels=48))
    assert runs.recorded_settings(wider)["curve"]["channels"] == 48


def test_other_contents_are_refused_wherever_they_lie(tmp_path: Path, config: DistillConfig) -> None:
    runs.record_config(config.output, config, stream_of("abc"))
    sweep = TuneConfig(distill=config, output=str(tmp_path / "sweep"))
    outcome.record_settings(sweep, stream_of("abc"))
    with pytest.raises(ValueError, match=r"records is \['abc'\], asked for \['def'\]"):
        runs.record_config(config.output, config, stream_of("def"))
    with pytest.raises(ValueError, match=r"refine_weight is 0\.0, asked for 0.5"):
        runs.record_config(config.output, replace(config, refine_weight=0.5), stream_of("abc"))
    (tmp_path / "vgg.pth").write_bytes(b"another")
    for record in (
        lambda: runs.record_config(config.output, config, stream_of("abc")),
        lambda: outcome.record_settings(sweep, stream_of("abc")),
    ):
        with pytest.raises(ValueError, match=r"lpips_sha256 is .*, asked for"):
            record()
