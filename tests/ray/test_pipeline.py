"""The jobs end to end on tiny data through real Ray: teacher, cache, students; killed, rerun, refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import shards
from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig, TeacherConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
)
from pipelines.pairs.ingest import ingest
from pipelines.shards import TARGET_COLUMNS
from pipelines.training import distillation
from pipelines.training.distillation import distill, make_stream
from pipelines.training.stream import make_dataset
from pipelines.training.teacher import train_teacher
from pipelines.trajectories.caches import find_cache
from pipelines.trajectories.precompute import plan_precompute, precompute
from pipelines.trajectories.teachers import teacher_targets
from pipelines.weights import load_hashed_network, load_network
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.networks.sr3_unet import UNetConfig

ROOT = Path(__file__).parents[2]
UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
SEGMENT = SegmentConfig(crop=16, crops=3)
OFF = StudentTrackingConfig(enabled=False)
ONE_THREAD = TrainingComputeConfig(threads=1)
CHECKPOINT = CheckpointConfig(every=4, validate_every=0, validation_images=2, validation_crop=32)
JOB_TIMEOUT_S = 240


@dataclass(frozen=True)
class Made:
    """What the jobs left for the tests to look at."""

    root: Path
    pairs: str
    teacher: TeacherConfig
    cache: PrecomputeConfig

    @property
    def weights(self) -> str:
        return f"{self.teacher.output}/teacher.safetensors"


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, np.ndarray]) -> Made:
    root = tmp_path_factory.mktemp("pipeline")
    write_lol(root / "LOLv1", photographs)
    pairs = str(root / "pairs")
    ingest(IngestConfig(source=str(root / "LOLv1"), output=pairs, pairs_per_shard=3, validation_share=0.3))
    teacher = TeacherConfig(
        pairs=pairs,
        output=str(root / "teacher"),
        unet=UNET,
        crop=16,
        crops_per_image=2,
        optim=OptimConfig(steps=12, batch_size=4, warmup_steps=2, ema_decay=0.9),
        compute=ONE_THREAD,
        checkpoint=CHECKPOINT,
        tracking=OFF,
    )
    train_teacher(teacher)
    cache = PrecomputeConfig(
        pairs=pairs,
        teacher=f"{teacher.output}/teacher.safetensors",
        output=str(root / "cache"),
        stages=(4, 2),
        segment=SEGMENT,
        records_per_shard=5,
        batch_size=2,
        compute=ONE_THREAD,
    )
    precompute(cache)
    return Made(root=root, pairs=pairs, teacher=teacher, cache=cache)


def write_lol(root: Path, photographs: Mapping[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for side in ("low", "high"):
        (root / "our485" / side).mkdir(parents=True)
    corners = [(y, x) for y in (0, 48) for x in (0, 64)]
    crops = [image[y : y + 48, x : x + 64] for image in photographs.values() for y, x in corners]
    for number, normal in enumerate(crops):
        Image.fromarray(normal).save(root / "our485" / "high" / f"{number}.png")
        Image.fromarray(degrade(normal, DegradeConfig(), rng)).save(root / "our485" / "low" / f"{number}.png")


def run_job(name: str, *flags: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL for the driver and everything that it started, as soon as the condition holds."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, f"the job ended before it could be killed: {process.communicate()[0][-2000:]}"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file of every stage's cache, its manifest too."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/**/*") if path.is_file()}


def test_the_teacher_learned_and_its_weights_say_what_they_are(made: Made) -> None:
    file = load_network(made.weights)
    assert file.network.config == UNET
    assert file.facts["role"] == "teacher"
    assert file.facts["config"]["crop"] == 16
    assert "output" not in file.facts["config"]
    report = train_teacher(made.teacher)
    assert "already trained" in report.title


def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(made: Made) -> None:
    output = made.root / "teacher-killed"
    flags = f"""--pairs {made.pairs} --output {output} --unet.base-channels 8 --unet.channel-mults 1 2
        --unet.num-res-blocks 1 --unet.norm-groups 4 --crop 16 --crops-per-image 2 --optim.steps 12
        --optim.batch-size 4 --optim.warmup-steps 2 --optim.ema-decay 0.9 --compute.threads 1
        --checkpoint.every 4 --checkpoint.validate-every 0 --tracking.no-enabled""".split()
    kill_when(run_job("train_teacher", *flags), (output / "checkpoints" / "step-000000004").exists)
    assert not (output / "teacher.safetensors").exists()
    rerun = replace(made.teacher, output=str(output))
    train_teacher(rerun)
    assert (output / "teacher.safetensors").read_bytes() == Path(made.weights).read_bytes()


def test_a_run_is_not_continued_with_another_config(made: Made) -> None:
    other = replace(made.teacher, optim=replace(made.teacher.optim, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"optim is .*0\.0001.*asked for .*0\.5"):
        train_teacher(other)


def test_a_cache_holds_every_record_once_in_the_stated_size(made: Made) -> None:
    manifest = shards.read_manifest(made.pairs, "pairs")
    num_pairs = sum(entry.rows for entry in manifest.shards if entry.split == "train")
    for stage in (4, 2):
        wanted = DistillConfig(cache=made.cache.output, teacher=made.weights, output="unused", segment=SEGMENT)
        url, cache = find_cache(wanted, stage, *load_hashed_network(made.weights))
        table = [row for entry in cache.shards for row in shards.read_shard(url, entry).to_pylist()]
        assert len(table) == cache.num_rows == num_pairs * SEGMENT.crops
        assert len({(row["pair_id"], row["seed"]) for row in table}) == len(table)
        assert all(row["nodes"][2] % 2 == 0 and row["nodes"][0] <= stage for row in table)


@pytest.mark.slow
def test_more_actors_and_kills_leave_the_same_bytes(made: Made) -> None:
    several = {
        workers: replace(
            made.cache,
            output=str(made.root / f"cache-{workers}"),
            compute=TrainingComputeConfig(workers=workers, cpus_per_worker=0.5),
        )
        for workers in (2, 3)
    }
    for config in several.values():
        precompute(config)
    killed = made.root / "cache-killed"
    flags = f"""--pairs {made.pairs} --teacher {made.weights} --output {killed} --stages 4,2 --segment.crop 16
        --segment.crops 3 --records-per-shard 5 --batch-size 2""".split()
    kill_when(run_job("precompute", *flags), lambda: len(list(killed.rglob("shards/*.json"))) >= 2)
    done = [record.with_suffix(".arrow") for record in killed.rglob("shards/*.json")]
    written = {path: path.stat().st_mtime_ns for path in done}
    report = precompute(replace(made.cache, output=str(killed)))
    num_missing = len(list(killed.rglob("shards/*.json"))) - len(done)
    assert report.facts["state"] == f"computed {num_missing} shards"
    assert {path: path.stat().st_mtime_ns for path in done} == written
    of_one = contents(made.cache.output)
    assert sum(name.endswith("manifest.json") for name in of_one) == 2
    assert all(contents(url) == of_one for url in (killed, *(config.output for config in several.values())))


def test_precompute_says_when_there_is_nothing_to_do_and_finds_a_flipped_byte(made: Made) -> None:
    assert "already done" in precompute(made.cache).facts["state"]
    assert [row["missing"] for row in plan_precompute(made.cache).rows] == [0, 0]
    manifest = next(Path(made.cache.output).rglob("manifest.json"))
    whole = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(ValueError, match=r"is unfinished: it has no manifest\.json; run again without --verify"):
        precompute(replace(made.cache, verify=True))
    manifest.write_bytes(whole)
    shard = next(Path(made.cache.output).rglob("*.arrow"))
    data = shard.read_bytes()
    shard.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    try:
        with pytest.raises(ValueError, match=shard.stem):
            precompute(replace(made.cache, verify=True))
        shard.unlink()
        with pytest.raises(ValueError, match="lacks 1 of"):
            precompute(replace(made.cache, verify=True))
    finally:
        shard.write_bytes(data)


def test_cache_online_and_stream_train_on_the_same_records_and_targets_in_the_same_order(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "RECORDS_PER_SHARD", made.cache.records_per_shard)
    config = distill_config(made, "never")
    cached, online = (
        make_stream(setting).load(2, 4, 0, 1) for setting in (config, replace(config, trajectories="online", cache=""))
    )
    streaming = make_stream(replace(config, trajectories="stream", cache="", teacher_actors=2))
    blocks = list(make_dataset(streaming, 0, 1).iter_batches(batch_size=4, batch_format="numpy"))
    assert np.concatenate([block["position"] for block in blocks]).tolist() == list(range(2 * 6 * 4))
    streamed = {name: np.concatenate([block[name] for block in blocks[2:4]]) for name in blocks[0]}
    for name in ("position", "low", "normal", "eps", "seed", "levels"):
        np.testing.assert_array_equal(cached[name], online[name])
        np.testing.assert_array_equal(streamed[name], online[name])
    parts = [{name: values[start : start + 4] for name, values in online.items()} for start in (0, 4)]
    computed = [teacher_targets(load_network(made.weights).network, part, "fp32") for part in parts]
    for name in TARGET_COLUMNS:
        expected = np.concatenate([targets[name].numpy() for targets in computed])
        np.testing.assert_array_equal(streamed[name], expected.astype(np.float32))
        np.testing.assert_allclose(cached[name].astype(np.float64), expected, rtol=2**-11, atol=1e-4)


@pytest.mark.slow
def test_two_workers_with_teachers_beside_them_agree_with_one_that_runs_it_itself(made: Made) -> None:
    config = replace(distill_config(made, "online"), stages=(4,), trajectories="online", cache="")
    distill(config)
    two = TrainingComputeConfig(workers=2, cpus_per_worker=0.5, threads=1)
    distill(replace(config, output=str(made.root / "stream"), trajectories="stream", compute=two))
    alone, together = (
        load_network(f"{made.root}/{run}/student-2.safetensors").network.state_dict() for run in ("online", "stream")
    )
    check_agreement(alone, together)


@pytest.mark.slow
def test_a_shard_that_is_damaged_or_gone_stops_training_with_one_line_that_names_it(made: Made) -> None:
    config = replace(distill_config(made, "damaged"), compute=replace(ONE_THREAD, max_failures=0))
    shard = next(Path(made.cache.output).rglob("4-*/shards/*.arrow"))
    data = shard.read_bytes()
    shard.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    try:
        with pytest.raises(ValueError, match=rf"^[^\n]*{shard.stem}[^\n]*$"):
            distill(config)
        shard.unlink()
        with pytest.raises(OSError, match=rf"^storage failed during training [^\n]*{shard.stem}[^\n]*$"):
            distill(config)
    finally:
        shard.write_bytes(data)


def check_agreement(alone: Mapping[str, torch.Tensor], together: Mapping[str, torch.Tensor]) -> None:
    """Equal but for rounding, which AdamW's first steps magnify wherever a gradient is nearly zero."""
    for name, value in alone.items():
        apart = (together[name] - value).abs()
        assert (apart > 2e-5).float().mean() < 1e-3, f"{name}: {int((apart > 2e-5).sum())} of {apart.numel()} differ"
        assert apart.max() < 1e-4 and apart.mean() < 5e-6, f"{name}: {apart.max()}, on average {apart.mean()}"


def distill_config(made: Made, name: str) -> DistillConfig:
    return DistillConfig(
        cache=made.cache.output,
        teacher=made.weights,
        pairs=made.pairs,
        output=str(made.root / name),
        stages=(4, 2),
        segment=SEGMENT,
        optim=OptimConfig(steps=6, batch_size=4, warmup_steps=1, ema_decay=0.9),
        compute=ONE_THREAD,
        checkpoint=replace(CHECKPOINT, every=3, validate_every=6),
        tracking=OFF,
    )


def test_students_come_out_of_every_stage_and_two_workers_agree_with_one(made: Made) -> None:
    one = distill(distill_config(made, "distill"))
    assert [row["steps"] for row in one.rows] == [2, 1]
    assert all(np.isfinite(row["psnr"]) for row in one.rows)
    workers = TrainingComputeConfig(workers=2, cpus_per_worker=0.5, threads=1)
    distill(replace(distill_config(made, "distill-two"), compute=workers))
    for steps in (2, 1):
        alone, together = (
            load_network(f"{made.root}/{run}/student-{steps}.safetensors").network.state_dict()
            for run in ("distill", "distill-two")
        )
        check_agreement(alone, together)


@pytest.mark.slow
def test_a_distillation_killed_in_its_second_stage_ends_with_the_same_students_bit_for_bit(made: Made) -> None:
    """Two workers, whose order of adding gradients up is fixed."""
    config = replace(
        distill_config(made, "undisturbed"),
        optim=OptimConfig(steps=40, batch_size=4, warmup_steps=1, ema_decay=0.9),
        compute=TrainingComputeConfig(workers=2, cpus_per_worker=0.5, threads=1),
        checkpoint=CheckpointConfig(every=4, validate_every=0),
    )
    distill(config)
    killed = replace(config, output=str(made.root / "distill-killed"))
    flags = f"""--pairs {made.pairs} --teacher {made.weights} --cache {config.cache} --output {killed.output}
        --stages 4,2 --segment.crop 16 --segment.crops 3 --optim.steps 40 --optim.batch-size 4 --optim.warmup-steps 1
        --optim.ema-decay 0.9 --compute.workers 2 --compute.cpus-per-worker 0.5 --compute.threads 1
        --checkpoint.every 4 --checkpoint.validate-every 0 --tracking.no-enabled""".split()
    checkpoints = Path(killed.output, "checkpoints")
    # A checkpoint is taken away again after two more, so it need not be the first one of the second stage that is seen.
    kill_when(
        run_job("distill", *flags), lambda: any(path.name > "step-000000040" for path in checkpoints.glob("step-*"))
    )
    assert not Path(killed.output, "student-1.safetensors").exists()
    distill(killed)
    for name in ("student-2.safetensors", "student-1.safetensors"):
        assert Path(killed.output, name).read_bytes() == Path(config.output, name).read_bytes()


def test_a_cache_that_does_not_fit_is_refused_with_the_field_that_differs(made: Made) -> None:
    config = distill_config(made, "refused")
    with pytest.raises(ValueError, match=r"segment is .*'crops': 3.*asked for .*'crops': 9"):
        distill(replace(config, segment=replace(SEGMENT, crops=9)))
    with pytest.raises(ValueError, match="no cache of stage 8"):
        distill(replace(config, stages=(8,)))
    with pytest.raises(ValueError, match="batch_size is 4, but must be at least workers x accumulate = 5"):
        distill(replace(config, compute=TrainingComputeConfig(workers=5)))


@pytest.mark.parametrize(
    ("job", "flags", "words"),
    [
        ("train_teacher", "--pairs nowhere --output x", "nowhere holds no finished pairs"),
        ("distill", "--cache nowhere --teacher nowhere --output x", "no weights at"),
    ],
)
def test_bad_input_is_one_line_and_status_2(job: str, flags: str, words: str, tmp_path: Path) -> None:
    process = run_job(job, *[str(tmp_path / word) if word in ("nowhere", "x") else word for word in flags.split()])
    output, _ = process.communicate(timeout=JOB_TIMEOUT_S)
    assert process.returncode == 2
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in output
