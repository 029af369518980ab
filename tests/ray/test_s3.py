"""The jobs from bucket to bucket over a socket: their bytes, faults on the way, and where the secret must not be."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import enhance as enhance_job
from jobs import ingest as ingest_job
from jobs.cli import main
from pipelines import shards, storage
from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, SegmentConfig, StudentTrackingConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.config.use import EnhanceConfig, EvaluateConfig
from pipelines.enhancement.enhance import enhance
from pipelines.evaluation.evaluate import evaluate
from pipelines.pairs.ingest import ingest
from pipelines.training.distillation import distill
from pipelines.training.teacher import train_teacher
from pipelines.trajectories.precompute import precompute
from pipelines.weights import load_network
from tests.ray.tiny import ONE_THREAD, UNET, save_teacher

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("ray_cluster")]

URL = "s3://data"
SEGMENT = SegmentConfig(crop=16, crops=2)
INGEST = IngestConfig(source=f"{URL}/LOLv1", output=f"{URL}/pairs", pairs_per_shard=4, validation_share=0.3)
PRECOMPUTE = PrecomputeConfig(
    pairs=f"{URL}/pairs",
    teacher=f"{URL}/teacher/teacher.safetensors",
    output=f"{URL}/cache",
    stages=(16, 8),
    segment=SEGMENT,
    records_per_shard=4,
    batch_size=4,
    compute=ONE_THREAD,
)
OPTIM = OptimConfig(steps=4, batch_size=4, warmup_steps=1, ema_decay=0.9)
CHECKPOINT = CheckpointConfig(every=2, validate_every=0)


def tracking(folder: Path) -> StudentTrackingConfig:
    return StudentTrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", model="")


def dataset(bucket: Any, prefix: str) -> dict[str, bytes]:
    """What lies below a prefix but for the report, which holds times."""
    return {name: data for name, data in bucket.objects(prefix).items() if name != "report.json"}


def files_that_hold(secret: bytes, *folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes())


@pytest.fixture(scope="module")
def bucket(
    s3, ray_cluster: None, make_lol_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A bucket with photographs, pair shards, a network and its caches."""
    s3.upload(make_lol_folder(tmp_path_factory.mktemp("s3") / "LOLv1"), "LOLv1")
    fill()
    return s3


def fill() -> None:
    ingest(INGEST)
    save_teacher(PRECOMPUTE.teacher)
    assert [row["stage"] for row in precompute(PRECOMPUTE).rows] == [16, 8]


def check_secret(bucket: Any, *folders: Path) -> None:
    """No object, no log of Ray and no file below the folders holds the secret."""
    secret = bucket.secret.encode()
    assert [name for name, data in bucket.objects().items() if secret in data] == []
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path())
    assert any(logs.iterdir()) and list(files_that_hold(secret, logs, *folders)) == []


def test_a_cache_in_a_bucket_is_found_again_and_whole_and_the_secret_stays_out(bucket) -> None:
    assert "already done" in precompute(PRECOMPUTE).facts["state"]
    assert [row["damaged"] for row in precompute(replace(PRECOMPUTE, verify=True)).rows] == [0, 0]
    check_secret(bucket)


def distill_config(folder: Path) -> DistillConfig:
    return DistillConfig(
        cache=PRECOMPUTE.output,
        teacher=PRECOMPUTE.teacher,
        pairs=INGEST.output,
        output=f"{URL}/students",
        stages=(16,),
        segment=SEGMENT,
        optim=OPTIM,
        compute=ONE_THREAD,
        checkpoint=CHECKPOINT,
        tracking=tracking(folder),
    )


@pytest.mark.slow
def test_students_are_distilled_from_bucket_to_bucket_and_the_secret_stays_out(
    bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = distill_config(tmp_path)
    assert [row["steps"] for row in distill(config).rows] == [8]
    assert "already distilled" in distill(config).title

    objects = bucket.objects()
    assert "students/student-8.safetensors" in objects
    assert any(name.startswith("students/checkpoints/") for name in objects)
    assert (tmp_path / "mlflow.db").exists()
    check_secret(bucket, tmp_path)
    assert bucket.secret not in "".join(capfd.readouterr())


def test_a_bucket_is_enhanced_and_judged_into_a_bucket(bucket) -> None:
    photographs = bucket.objects("LOLv1/our485/low/")
    config = EnhanceConfig(
        source=f"{URL}/LOLv1/our485/low",
        output=f"{URL}/enhanced",
        weights=PRECOMPUTE.teacher,
        steps=1,
        compute=ONE_THREAD,
    )
    enhance(config)
    enhanced = bucket.objects("enhanced/")
    assert set(photographs) | {"enhance.json", "report.json"} == set(enhanced)
    assert enhance(config).title.startswith("Already done")
    assert dataset(bucket, "enhanced/") == {name: enhanced[name] for name in enhanced if name != "report.json"}
    judged = EvaluateConfig(
        pairs=INGEST.output,
        output=f"{URL}/judged",
        weights=(f"teacher:1={PRECOMPUTE.teacher}",),
        compute=ONE_THREAD,
        tracking=StudentTrackingConfig(enabled=False),
    )
    evaluate(judged)
    assert {"report.json", "report.html", "images.csv", "before_after.png"} <= set(bucket.objects("judged/"))


def test_odd_keys_and_texts_of_editors_in_a_bucket(bucket, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = bucket.objects("LOLv1/our485/low/")["1.png"]
    for name in ("a.png", "/b.png", "é %41 [x]+&=::#?.png"):
        storage.write_bytes(f"{URL}/odd/night/{name}", photograph)
    storage.write_bytes(f"{URL}/odd/enhance.toml", "steps = 1 # é\rcompute.threads = 1\r".encode("utf-16"))
    flags = ["--source", f"{URL}/odd/night", "--output", f"{URL}/odd/day", "--weights", PRECOMPUTE.teacher]
    main(enhance_job.JOB, ["--config", f"{URL}/odd/enhance.toml", *flags])
    assert {"a.png", "é %41 [x]+&=::#?.png", "enhance.json", "report.json"} == set(bucket.objects("odd/day/"))
    assert "left out: /b.png: its name has the part ''" in capsys.readouterr().out
    lines = "low,normal\r../night/a.png,../../LOLv1/our485/high/1.png\r"
    storage.write_bytes(f"{URL}/odd/lists/pairs.csv", lines.encode("utf-8-sig"))
    flags = ["--source", f"{URL}/odd/lists/pairs.csv", "--output", f"{URL}/odd/pairs", "--layout", "table"]
    main(ingest_job.JOB, [*flags, "--validation-share", "0"])
    facts = shards.read_manifest(f"{URL}/odd/pairs", "pairs").facts
    assert facts["splits"]["train"]["pair_ids"] == ["night/a"]


def test_throttling_and_broken_connections_are_waited_out_and_lose_nothing(
    bucket, s3_gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = s3_gateway.throttled, s3_gateway.dropped
    monkeypatch.setattr(s3_gateway, "throttle_every", 13)
    monkeypatch.setattr(s3_gateway, "drop_every", 17)
    ingest(replace(INGEST, output=f"{URL}/faulty/pairs"))
    precompute(replace(PRECOMPUTE, pairs=f"{URL}/faulty/pairs", output=f"{URL}/faulty/cache"))
    assert s3_gateway.throttled - before[0] >= 5 and s3_gateway.dropped - before[1] >= 4
    for folder in ("pairs", "cache"):
        assert dataset(bucket, f"faulty/{folder}/") == dataset(bucket, f"{folder}/")


@pytest.mark.slow
def test_a_teacher_is_trained_from_bucket_to_bucket(bucket, tmp_path: Path) -> None:
    config = TeacherConfig(
        pairs=INGEST.output,
        output=f"{URL}/trained",
        network="sr3-unet",
        unet=UNET,
        crop=16,
        optim=OPTIM,
        compute=ONE_THREAD,
        checkpoint=CHECKPOINT,
        tracking=tracking(tmp_path),
    )
    train_teacher(config)
    assert load_network(f"{URL}/trained/teacher.safetensors").facts["role"] == "teacher"
    assert "already trained" in train_teacher(config).title
    check_secret(bucket, tmp_path)


@pytest.mark.slow
def test_openstack_swift_holds_the_same_bytes_and_students_are_distilled_from_it(
    bucket, swift, make_lol_folder: Callable[[Path], Path], tmp_path: Path
) -> None:
    swift.upload(make_lol_folder(tmp_path / "LOLv1"), "LOLv1")
    fill()
    for folder in ("pairs/", "cache/"):
        assert dataset(swift, folder) == dataset(bucket, folder)
    assert [row["steps"] for row in distill(distill_config(tmp_path)).rows] == [8]
    assert "students/student-8.safetensors" in swift.objects()
