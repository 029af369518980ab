"""`ray job submit` on a head of its own: what is uploaded, every job in turn, a stop in mid-run, going on."""

import re
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray._private.runtime_env.packaging import create_package

from tests.ray.head import Head
from tests.ray.processes import ROOT, wait_until

MOST_UPLOADED = 6_000_000
NETWORK = (
    "--network sr3-unet --unet.base-channels 8 --unet.channel-mults 1 2 --unet.num-res-blocks 1 --unet.norm-groups 4"
)
TRAINING = "--optim.batch-size 4 --optim.warmup-steps 2 --compute.threads 1 --tracking.no-enabled"
SEGMENT = "--segment.crop 16 --segment.crops 2"


def test_only_the_code_is_uploaded(tmp_path: Path) -> None:
    """As `ray job submit --working-dir .` packs it, .gitignore and .rayignore applied."""
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[])
    names = zipfile.ZipFile(package).namelist()
    assert package.stat().st_size < MOST_UPLOADED
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert {"jobs", "pipelines", "reddit_core"} <= folders <= {"jobs", "pipelines", "reddit_core", "infra", "weights"}
    assert {name for name in names if name.startswith("weights/")} <= {"weights/", "weights/lol-student-2.safetensors"}
    assert {name for name in names if name.startswith(".")} <= {".gitignore", ".rayignore"}
    assert not [name for name in names if "__pycache__" in name]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = Head(tmp_path_factory.mktemp("home"))
    yield head
    head.stop()


@pytest.fixture(scope="module")
def data(head: Head, make_lol_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pairs`, ingested by a submitted job."""
    root = tmp_path_factory.mktemp("data")
    source = make_lol_folder(root / "LOLv1")
    output = head.submit("ingest", f"python jobs/ingest.py --source {source} --output {root}/pairs")
    assert head.status("ingest") == "SUCCEEDED" and "8 pairs" in output
    return root


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_job_that_is_stopped_resumes_when_it_is_submitted_again(head: Head, data: Path) -> None:
    run = data / "teacher"
    command = (
        f"python jobs/train_teacher.py --pairs {data}/pairs --output {run} {NETWORK} {TRAINING} --crop 16 "
        "--optim.steps 1500 --checkpoint.every 50 --checkpoint.validate-every 0"
    )
    head.submit("first", command, "--no-wait")
    wait_until(lambda: bool(checkpoints(run)))
    head.ray("job", "stop", "first")
    assert head.status("first") == "STOPPED"
    reached = checkpoints(run)[-1]
    assert reached < 1500 and not (run / "teacher.safetensors").exists()

    output = head.submit("second", command)
    assert head.status("second") == "SUCCEEDED" and (run / "teacher.safetensors").exists()
    shown = [int(step) for step in re.findall(r"(\d+)/1500 steps", output)]
    assert reached < min(shown) and max(shown) == 1500
    assert "already trained" in head.submit("third", command)


@pytest.mark.slow
def test_every_job_after_the_teacher(head: Head, data: Path) -> None:
    teacher, student = data / "teacher" / "teacher.safetensors", data / "students" / "student-2.safetensors"
    inputs = f"--pairs {data}/pairs --teacher {teacher}"
    distill = f"{inputs} --cache {data}/cache --stages 4 {SEGMENT} --optim.steps 8 {TRAINING}"
    swept = " ".join(
        flag.replace("--", "--distill.", 1) if flag.startswith("--") else flag
        for flag in f"{distill} --output {data}/best --checkpoint.every 4 --checkpoint.validate-every 4".split()
    )
    commands = {
        "precompute": f"{inputs} --output {data}/cache --stages 4 {SEGMENT} --batch-size 4 --compute.threads 1",
        "distill": f"{distill} --output {data}/students --checkpoint.validate-every 0",
        "evaluate": f"--pairs {data}/pairs --output {data}/report --weights student:2={student} --limit 1 "
        "--tracking.no-enabled",
        "tune": f"{swept} --output {data}/sweep --trials 2 --trial-steps 4 --no-asha",
        "enhance": f"--source {data}/LOLv1/our485/low --output {data}/enhanced --weights {student}",
    }
    for name, flags in commands.items():
        head.submit(name, f"python jobs/{name}.py {flags}")
        assert head.status(name) == "SUCCEEDED"
    assert (data / "sweep" / "best.toml").exists()
    assert student.exists() and len(list((data / "enhanced").glob("*.png"))) == 8


@pytest.mark.slow
def test_bad_input_is_one_line_and_a_failed_job(head: Head) -> None:
    head.submit("bad", "python jobs/ingest.py --output s3://b/o --max-bad 2 --source s3://b/s", check=False)
    output = head.ray("job", "logs", "bad")  # which the submitting command may not wait for
    assert head.status("bad") == "FAILED"
    assert "error: " in output and "max_bad is 2.0, but is a share" in output and "Traceback" not in output


@pytest.mark.slow
def test_the_job_server_is_on_loopback_and_asks_for_the_token(head: Head) -> None:
    for token in ("", "0" * 64):
        with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
            head.ask("/api/jobs/", token)
    listening = [
        connection.laddr.ip
        for process in head.process.children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == head.dashboard
    ]
    assert set(listening) == {"127.0.0.1"}
