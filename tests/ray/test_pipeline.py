"""The jobs end to end on tiny data through real Ray: teacher, cache, students; killed, rerun, refused."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from jobs import distill as distill_job
from jobs import train_teacher as teacher_job
from jobs.cli import Job, main
from pipelines import shards
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, TrainingComputeConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.shards import TARGET_COLUMNS
from pipelines.tracking import OFF
from pipelines.training import distillation, teacher
from pipelines.training.distillation import distill, make_stream
from pipelines.training.stream import make_dataset
from pipelines.training.teacher import train_teacher
from pipelines.trajectories.caches import find_cache
from pipelines.trajectories.precompute import plan_precompute, precompute
from pipelines.trajectories.teachers import teacher_targets
from pipelines.weights import load_hashed_network, load_network
from tests.ray.files import contents, flip_bit
from tests.ray.processes import JobProcess, started, wait_until
from tests.ray.tiny import NUM_TRAIN, ONE_THREAD, SEGMENT, UNET, Tiny
from tests.ray.training import train_here

# Of the tiny teacher.
TEACHER_FLAGS = """--network sr3-unet --unet.base-channels 8 --unet.channel-mults 1 2 --unet.num-res-blocks 1
    --unet.norm-groups 4 --crop 16 --crops-per-image 2 --optim.steps 12 --optim.batch-size 4 --optim.warmup-steps 2
    --optim.ema-decay 0.9 --compute.threads 1 --checkpoint.every 4 --checkpoint.validate-every 0
    --tracking.no-enabled"""
TWO_WORKERS = TrainingComputeConfig(workers=2, cpus_per_worker=0.5, threads=1)


def train_killed(config: TeacherConfig, ray_address: str = "") -> None:
    """Trains a teacher whose driver is killed after its first checkpoint, and run again."""
    output = Path(config.output)
    job = JobProcess(
        "train_teacher",
        f"--pairs {config.pairs} --output {output} {TEACHER_FLAGS}",
        output.with_suffix(".log"),
        ray_address,
    )
    job.kill_when((output / "checkpoints" / "step-000000004").exists)
    assert not (output / "teacher.safetensors").exists()
    # A running Ray takes the workers of a lost driver away.
    wait_until(lambda: not started("RayTrainWorker"))
    train_teacher(config)


@pytest.fixture(scope="module")
def taught(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A teacher whose training was killed and resumed, in a Ray that went on running."""
    config = tiny.training(tmp_path_factory.mktemp("teacher") / "killed")
    train_killed(config, ray.get_runtime_context().gcs_address)
    return config


def weights_of(config: TeacherConfig) -> str:
    return f"{config.output}/teacher.safetensors"


def tensors_of(config: TeacherConfig) -> dict[str, Tensor]:
    return load_network(weights_of(config)).network.state_dict()


def test_the_teacher_learned_and_its_weights_say_what_they_are(taught: TeacherConfig) -> None:
    file = load_network(weights_of(taught))
    assert file.network.config == UNET
    assert file.facts["role"] == "teacher"
    assert file.facts["config"]["crop"] == 16
    assert "output" not in file.facts["config"]
    report = train_teacher(taught)
    assert "already trained" in report.title


def test_a_killed_training_has_the_weights_of_an_undisturbed_one_bit_for_bit(
    taught: TeacherConfig, tmp_path: Path
) -> None:
    undisturbed = replace(taught, output=str(tmp_path / "undisturbed"))
    train_here(teacher.make_loop(undisturbed, OFF), teacher.make_stream(undisturbed))
    assert same_tensors(tensors_of(taught), tensors_of(undisturbed))


@pytest.mark.slow
def test_undisturbed_or_killed_with_its_ray_the_file_is_the_same(taught: TeacherConfig, tmp_path: Path) -> None:
    whole, killed = (replace(taught, output=str(tmp_path / name)) for name in ("whole", "killed"))
    train_teacher(whole)
    train_killed(killed)
    for config in (whole, killed):
        assert Path(weights_of(config)).read_bytes() == Path(weights_of(taught)).read_bytes()


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_is_not_continued_with_another_config_but_its_pairs_may_move(
    taught: TeacherConfig, tmp_path: Path
) -> None:
    other = replace(taught, optim=replace(taught.optim, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"optim is .*0\.0001.*asked for .*0\.5"):
        train_teacher(other)
    moved = shutil.copytree(taught.pairs, tmp_path / "moved")
    assert train_teacher(replace(taught, pairs=str(moved))).title.startswith("The teacher is already trained")


def test_a_cache_holds_every_record_once_in_the_stated_size(tiny_cache: Tiny) -> None:
    manifest = shards.read_manifest(tiny_cache.pairs, "pairs")
    num_pairs = sum(entry.rows for entry in manifest.shards if entry.split == "train")
    assert num_pairs == NUM_TRAIN
    for stage in (4, 2):
        wanted = DistillConfig(cache=tiny_cache.cache, teacher=tiny_cache.teacher, output="unused", segment=SEGMENT)
        url, cache = find_cache(wanted, stage, *load_hashed_network(tiny_cache.teacher))
        table = [row for entry in cache.shards for row in shards.read_shard(url, entry).to_pylist()]
        assert len(table) == cache.num_rows == num_pairs * SEGMENT.crops
        assert len({(row["pair_id"], row["seed"]) for row in table}) == len(table)
        assert all(row["nodes"][2] % 2 == 0 and row["nodes"][0] <= stage for row in table)


@pytest.mark.slow
def test_more_actors_and_kills_leave_the_same_bytes(tiny_cache: Tiny, tmp_path: Path) -> None:
    several = {
        workers: tiny_cache.precompute(
            output=str(tmp_path / f"cache-{workers}"),
            compute=TrainingComputeConfig(workers=workers, cpus_per_worker=0.5),
        )
        for workers in (2, 3)
    }
    for config in several.values():
        precompute(config)
    killed = tmp_path / "cache-killed"
    flags = f"""--pairs {tiny_cache.pairs} --teacher {tiny_cache.teacher} --output {killed} --stages 4,2
        --segment.crop 16 --segment.crops 3 --records-per-shard 5 --batch-size 2"""
    job = JobProcess("precompute", flags, tmp_path / "log")
    job.kill_when(lambda: len(list(killed.rglob("shards/*.json"))) >= 2)
    done = [record.with_suffix(".arrow") for record in killed.rglob("shards/*.json")]
    written = {path: path.stat().st_mtime_ns for path in done}
    report = precompute(tiny_cache.precompute(output=str(killed)))
    num_missing = len(list(killed.rglob("shards/*.json"))) - len(done)
    assert report.facts["state"] == f"computed {num_missing} shards"
    assert {path: path.stat().st_mtime_ns for path in done} == written
    of_one = contents(tiny_cache.cache)
    assert sum(name.endswith("manifest.json") for name in of_one) == 2
    assert all(contents(url) == of_one for url in (str(killed), *(config.output for config in several.values())))


def test_precompute_says_when_there_is_nothing_to_do_and_finds_a_flipped_byte(tiny_cache: Tiny, tmp_path: Path) -> None:
    config = tiny_cache.precompute(output=str(shutil.copytree(tiny_cache.cache, tmp_path / "cache")))
    assert "already done" in precompute(config).facts["state"]
    assert [row["missing"] for row in plan_precompute(config).rows] == [0, 0]
    manifest = next(Path(config.output).rglob("manifest.json"))
    whole = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(ValueError, match=r"is unfinished: it has no manifest\.json; run again without --verify"):
        precompute(replace(config, verify=True))
    manifest.write_bytes(whole)
    shard = next(Path(config.output).rglob("*.arrow"))
    flip_bit(shard)
    with pytest.raises(ValueError, match=shard.stem):
        precompute(replace(config, verify=True))
    shard.unlink()
    with pytest.raises(ValueError, match="lacks 1 of"):
        precompute(replace(config, verify=True))


def test_cache_online_and_stream_train_on_the_same_records_and_targets_in_the_same_order(
    tiny_cache: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "RECORDS_PER_SHARD", tiny_cache.precompute().records_per_shard)
    config = tiny_cache.distillation(tmp_path / "never")
    cached = make_stream(config).load(2, 4, 0, 1)
    online = make_stream(replace(config, trajectories="online", cache="")).load(2, 4, 0, 1)
    streaming = make_stream(replace(config, trajectories="stream", cache="", teacher_actors=2))
    dataset = make_dataset(streaming, 0, 1)
    dataset.context.execution_options.preserve_order = True  # as the trainer has it
    blocks = list(dataset.iter_batches(batch_size=4, batch_format="numpy"))
    assert np.concatenate([block["position"] for block in blocks]).tolist() == list(range(2 * 6 * 4))
    streamed = {name: np.concatenate([block[name] for block in blocks[2:4]]) for name in blocks[0]}
    for name in ("position", "low", "normal", "eps", "seed", "levels"):
        np.testing.assert_array_equal(cached[name], online[name])
        np.testing.assert_array_equal(streamed[name], online[name])
    parts = [{name: values[start : start + 4] for name, values in online.items()} for start in (0, 4)]
    computed = [teacher_targets(load_network(tiny_cache.teacher).network, part, "fp32") for part in parts]
    for name in TARGET_COLUMNS:
        expected = np.concatenate([targets[name].numpy() for targets in computed])
        np.testing.assert_array_equal(streamed[name], expected.astype(np.float32))
        np.testing.assert_allclose(cached[name].astype(np.float64), expected, rtol=2**-11, atol=1e-4)


@pytest.mark.slow
def test_two_workers_with_teachers_beside_them_agree_with_one_that_runs_it_itself(
    tiny_cache: Tiny, tmp_path: Path
) -> None:
    config = tiny_cache.distillation(tmp_path / "online", stages=(4,), trajectories="online", cache="")
    distill(config)
    distill(replace(config, output=str(tmp_path / "stream"), trajectories="stream", compute=TWO_WORKERS))
    check_agreement(tmp_path / "online", tmp_path / "stream", steps=2)


@pytest.mark.slow
def test_a_shard_that_is_damaged_or_gone_stops_training_with_one_line_that_names_it(
    tiny_cache: Tiny, tmp_path: Path
) -> None:
    cache = shutil.copytree(tiny_cache.cache, tmp_path / "cache")
    compute = replace(ONE_THREAD, max_failures=0)
    config = tiny_cache.distillation(tmp_path / "damaged", cache=str(cache), compute=compute)
    shard = next(cache.rglob("4-*/shards/*.arrow"))
    flip_bit(shard)
    with pytest.raises(ValueError, match=rf"^[^\n]*{shard.stem}[^\n]*$"):
        distill(config)
    shard.unlink()
    with pytest.raises(OSError, match=rf"^storage failed during training [^\n]*{shard.stem}[^\n]*$"):
        distill(config)


def check_agreement(one: Path, other: Path, steps: int) -> None:
    """The students of two runs are equal but for rounding, which AdamW's first steps magnify wherever a gradient is
    nearly zero."""
    alone, together = (load_network(f"{run}/student-{steps}.safetensors").network.state_dict() for run in (one, other))
    for name, value in alone.items():
        apart = (together[name] - value).abs()
        assert (apart > 2e-5).float().mean() < 1e-3, f"{name}: {int((apart > 2e-5).sum())} of {apart.numel()} differ"
        assert apart.max() < 1e-4 and apart.mean() < 5e-6, f"{name}: {apart.max()}, on average {apart.mean()}"


def test_students_come_out_of_every_stage_and_two_workers_agree_with_one(tiny_cache: Tiny, tmp_path: Path) -> None:
    two = distill(tiny_cache.distillation(tmp_path / "two", compute=TWO_WORKERS))
    assert [row["steps"] for row in two.rows] == [2, 1]
    assert all(np.isfinite(row["psnr"]) for row in two.rows)
    one = tiny_cache.distillation(tmp_path / "one")
    stream = make_stream(one)
    train_here(distillation.make_loop(one, OFF, stream.teacher_sha256), stream)
    for steps in (2, 1):
        check_agreement(tmp_path / "one", tmp_path / "two", steps)


@pytest.mark.slow
def test_a_distillation_killed_in_its_second_stage_ends_with_the_same_students_bit_for_bit(
    tiny_cache: Tiny, tmp_path: Path
) -> None:
    """Two workers, whose order of adding gradients up is fixed."""
    config = tiny_cache.distillation(
        tmp_path / "undisturbed",
        optim=OptimConfig(steps=40, batch_size=4, warmup_steps=1, ema_decay=0.9),
        compute=TWO_WORKERS,
        checkpoint=CheckpointConfig(every=4, validate_every=0),
    )
    distill(config)
    killed = replace(config, output=str(tmp_path / "killed"))
    flags = f"""--pairs {config.pairs} --teacher {config.teacher} --cache {config.cache} --output {killed.output}
        --stages 4,2 --segment.crop 16 --segment.crops 3 --optim.steps 40 --optim.batch-size 4 --optim.warmup-steps 1
        --optim.ema-decay 0.9 --compute.workers 2 --compute.cpus-per-worker 0.5 --compute.threads 1
        --checkpoint.every 4 --checkpoint.validate-every 0 --tracking.no-enabled"""
    checkpoints = Path(killed.output, "checkpoints")
    # A checkpoint is taken away again after two more, so it need not be the first one of the second stage that is seen.
    JobProcess("distill", flags, tmp_path / "log").kill_when(
        lambda: any(path.name > "step-000000040" for path in checkpoints.glob("step-*"))
    )
    assert not Path(killed.output, "student-1.safetensors").exists()
    distill(killed)
    for name in ("student-2.safetensors", "student-1.safetensors"):
        assert Path(killed.output, name).read_bytes() == Path(config.output, name).read_bytes()


def test_a_cache_that_does_not_fit_is_refused_with_the_field_that_differs(tiny_cache: Tiny, tmp_path: Path) -> None:
    config = tiny_cache.distillation(tmp_path / "refused")
    with pytest.raises(ValueError, match=r"segment is .*'crops': 3.*asked for .*'crops': 9"):
        distill(replace(config, segment=replace(SEGMENT, crops=9)))
    with pytest.raises(ValueError, match="no cache of stage 8"):
        distill(replace(config, stages=(8,)))
    with pytest.raises(ValueError, match="batch_size is 4, but must be at least workers x accumulate = 5"):
        distill(replace(config, compute=TrainingComputeConfig(workers=5)))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("job", "flags", "words"),
    [
        (teacher_job.JOB, "--pairs {0}/nowhere --output {0}/x", "nowhere holds no finished pairs"),
        (distill_job.JOB, "--cache {0}/nowhere --teacher {0}/nowhere --output {0}/x", "no weights at"),
    ],
    ids=["train_teacher", "distill"],
)
def test_bad_input_is_one_line_and_status_2(
    job: Job[Any], flags: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(job, flags.format(tmp_path).split())
    assert stop.value.code == 2
    output, errors = capfd.readouterr()
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]
    assert "Traceback" not in output + errors
