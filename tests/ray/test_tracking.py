"""Tracking against a real MLflow server over HTTP: runs found again, a server that goes and comes, models."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from requests import HTTPError, Response

from pipelines import tracking
from pipelines.config.parts import StudentTrackingConfig
from pipelines.model_card import ModelCard
from pipelines.tracking import InputData, RunHandle, RunWriter, spill, tracked_run
from pipelines.tracking.mlflow_backend import student_model
from pipelines.tracking.mlflow_backend.client import translated_errors
from pipelines.tracking.outbox import RejectedError, UnavailableError
from pipelines.tracking.spill import Point
from reddit_core.networks.sr3_unet import UNet
from reddit_core.sampler import enhance
from reddit_core.student import Student
from reddit_core.weights import NetworkFile, encode_network
from tests.ray.head import free_ports
from tests.ray.processes import wait_until

pytestmark = pytest.mark.xdist_group("mlflow")  # with the others that need the server


@dataclass(frozen=True)
class Settings:
    """A job's settings."""

    steps: int = 3


@pytest.fixture
def server(mlflow_server):
    """The running server."""
    return mlflow_server


def config_of(uri: str, experiment: str) -> StudentTrackingConfig:
    return StudentTrackingConfig(uri=uri, experiment=experiment)


def runs_of(uri: str, experiment: str):
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def open_run(config: StudentTrackingConfig, name: str, settings: Mapping[str, object], **changes: Any) -> RunHandle:
    """Plans a run and opens it, as a job does."""
    return tracking.open_run(tracking.plan_run(config, name, settings, **changes))


def test_a_run_is_found_again_by_its_name_and_parent(server) -> None:
    config = config_of(server.uri, "names")
    parent = open_run(config, "s3://u:secret@host/sweep", {"optim": {"steps": 3}, "stages": (16, 8)})
    child = open_run(config, "/data/run", {"x": 1}, parent=parent, tags={"kind": "trial"})
    alone = open_run(config, "/data/run", {"x": 1})
    tracking.close_run(child, "FAILED")
    again = open_run(config, "/data/run", {"x": 2}, parent=parent)
    assert again.run_id == child.run_id
    assert len({parent.run_id, child.run_id, alone.run_id}) == 3
    runs = {run.info.run_id: run for run in runs_of(server.uri, "names")}
    assert len(runs) == 3
    assert runs[parent.run_id].data.params == {"optim.steps": "3", "stages": "16,8"}
    assert runs[child.run_id].data.tags["mlflow.parentRunId"] == parent.run_id
    assert runs[child.run_id].data.tags["kind"] == "trial"
    assert runs[child.run_id].data.tags["changed.x"] == "2"
    assert runs[child.run_id].info.status == "RUNNING"
    assert "mlflow.parentRunId" not in runs[alone.run_id].data.tags
    assert not [run for run in runs.values() if "secret" in str(run.to_dictionary())]


def test_a_planned_run_is_started_by_its_writer(server) -> None:
    handle = tracking.plan_run(config_of(server.uri, "planned"), "/data/planned", {"x": 1})
    assert handle.run_id == ""
    with RunWriter(handle) as writer:
        writer.metrics({"train/loss": 0.5}, step=3)
    tracking.end_run(handle, "FINISHED", {"why": "done"})
    (run,) = runs_of(server.uri, "planned")
    assert (run.data.metrics["train/loss"], run.info.status, run.data.tags["why"]) == (0.5, "FINISHED", "done")


def test_images_files_and_datasets_arrive(server, tmp_path: Path) -> None:
    data = InputData("cache", "s3://u:secret@bucket/cache/manifest.json", "0123456789abcdef")
    for inputs in ([], [data], [data]):
        handle = open_run(config_of(server.uri, "files"), str(tmp_path / "run"), {}, inputs=inputs)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n")
    with RunWriter(handle) as writer:
        writer.artifact(table, "reports")
        table.unlink()  # the writer has its own copy
        writer.image("validation/4-to-2", np.zeros((8, 24, 3), np.uint8), step=10)
    client = MlflowClient(server.uri)
    assert [file.path for file in client.list_artifacts(handle.run_id, "reports")] == ["reports/table.csv"]
    assert any(file.path.endswith(".png") for file in client.list_artifacts(handle.run_id, "images"))
    run = client.get_run(handle.run_id)
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("cache", "0123456789abcdef")
    assert "secret" not in entry.dataset.source
    assert run.data.tags["reddit.key.cache"] == "0123456789abcdef"
    assert len(run.data.tags["reddit.code"]) == 12


def test_a_registered_student_enhances(server, tiny_unet: UNet, tmp_path: Path) -> None:
    handle = open_run(config_of(server.uri, "models"), "/data/student", {})
    file = NetworkFile(network=tiny_unet)
    card = ModelCard(steps=2, data="eight photographs", metrics=[{"psnr": 20.0, "psnr_gt_mean": 22.0}])
    images = np.random.default_rng(0).integers(0, 256, (2, 18, 23, 3), dtype=np.uint8)
    urls = [tracking.register_student(handle, "tiny-student", encode_network(file), images[:1], card) for _ in range(2)]
    assert urls == ["models:/tiny-student/1"] * 2
    version = MlflowClient(server.uri).get_model_version("tiny-student", "1")
    assert "eight photographs" in version.description
    assert "| 20 | 22 |" in version.description
    tiles: dict[str, Any] = {"tile": 16, "overlap": 4}
    # In a process of its own, so that the code inside the model is what runs.
    script = (
        "import mlflow, numpy, sys; from mlflow import pyfunc\n"
        f"mlflow.set_tracking_uri({server.uri!r})\n"
        f"model = pyfunc.load_model({urls[0]!r})\n"
        f"images = numpy.load({str(tmp_path / 'in.npy')!r})\n"
        f"numpy.save({str(tmp_path / 'out.npy')!r}, model.predict(images))\n"
        f"numpy.save({str(tmp_path / 'tiled.npy')!r}, model.predict(images, params={tiles!r}))\n"
        "print(sys.modules['reddit_core'].__file__)\n"
        "print(model.metadata.signature, model.metadata.saved_input_example_info)"
    )
    np.save(tmp_path / "in.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    assert str(Path(__file__).parents[2] / "reddit_core") not in done.stdout
    assert all(words in done.stdout for words in ("uint8", "(-1, -1, -1, 3)", *student_model.PARAMS, "input_example"))
    low = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = (enhance(tiny_unet, low, file.schedule, 2, seed=0) + 1) * 127.5
    result = torch.from_numpy(np.load(tmp_path / "out.npy")).permute(0, 3, 1, 2)
    assert result.dtype == torch.uint8
    assert (result.float() - expected).abs().max() <= 0.51
    tiled = [Student(file).enhance(image, steps=2, **tiles) for image in images]
    assert np.abs(np.load(tmp_path / "tiled.npy").astype(int) - np.stack(tiled)).max() <= 1


@pytest.mark.slow
@pytest.mark.s3
def test_artifacts_on_s3_go_through_the_server(s3_mlflow_server, tmp_path: Path) -> None:
    server, keys = s3_mlflow_server
    handle = open_run(config_of(server.uri, "s3"), str(tmp_path / "run"), {})
    note = tmp_path / "note.txt"
    note.write_text("in a bucket")
    with RunWriter(handle) as writer:
        writer.artifact(note, "reports")
    client = MlflowClient(server.uri)
    note.unlink()
    assert (
        Path(client.download_artifacts(handle.run_id, "reports/note.txt", str(tmp_path))).read_text() == "in a bucket"
    )
    assert keys() == [f"artifacts/1/{handle.run_id}/artifacts/reports/note.txt"]
    assert not (server.folder / "artifacts").exists()


def test_what_cannot_work_is_said_clearly(server) -> None:
    with pytest.raises(ValueError, match="must be sqlite:///"):
        open_run(StudentTrackingConfig(uri="runs/mlflow.db"), "/x", {})
    client = MlflowClient(server.uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="'gone' was deleted"):
        open_run(config_of(server.uri, "gone"), "/x", {})


def test_a_store_of_another_mlflow_is_refused_at_once_with_the_remedy(server, tmp_path: Path) -> None:
    store = shutil.copy(server.folder / "mlflow.db", tmp_path / "old.db")
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '867495a8f9d4'")
    uri = f"sqlite:///{store}"
    message = rf"refuses \(its database is of another MLflow version; back it up and run 'mlflow db upgrade {uri}'"
    with pytest.raises(ValueError, match=message):
        open_run(config_of(uri, "old"), "/x", {})


def test_switched_off_it_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    handle = open_run(StudentTrackingConfig(enabled=False), "/x", {})
    with RunWriter(handle) as writer:
        writer.metrics({"train/loss": 1.0}, 1)
        writer.image("a", np.zeros((2, 2, 3), np.uint8), 1)
    tracking.close_run(handle, "FINISHED")
    assert handle == RunHandle("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_store_is_made_where_the_driver_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.default_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.default_uri() == "http://127.0.0.1:1"


def test_a_server_that_does_not_answer_costs_nothing_either(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    config = config_of(server.uri, "hanging")
    early = open_run(config, str(tmp_path / "early"), {})
    os.killpg(server.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    late = open_run(config, str(tmp_path / "late"), {"x": 1})
    assert (late.run_id, time.monotonic() - started < 8) == ("", True)
    started = time.monotonic()
    writers = [RunWriter(handle) for handle in (early, late)]
    for step in range(1000):
        for writer in writers:
            writer.metrics({"train/loss": float(step)}, step)
    assert time.monotonic() - started < 1
    os.killpg(server.process.pid, signal.SIGCONT)
    for writer, handle in zip(writers, (early, late), strict=True):
        writer.close(timeout_s=60)
        tracking.close_run(handle, "FINISHED")
    runs = {run.data.tags["reddit.run_name"]: run for run in runs_of(server.uri, "hanging")}
    assert set(runs) == {str(tmp_path / name) for name in ("early", "late")}
    assert {(run.info.status, run.data.metrics["train/loss"]) for run in runs.values()} == {("FINISHED", 999.0)}


def test_a_run_that_is_done_is_only_sent_what_waits(server, tmp_path: Path) -> None:
    config, output = config_of(server.uri, "done"), str(tmp_path / "run")
    with tracked_run(config, output, Settings(), job="distill") as handle:
        pass
    client = MlflowClient(server.uri)
    first = client.get_run(handle.run_id)
    spill.save(output, [Point("train/loss", 0.5, 1, 7)], [])
    with tracked_run(config, output, Settings(), job="distill", done=True) as again:
        assert again.run_id == handle.run_id
    run = client.get_run(handle.run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", first.info.end_time)
    assert run.data.metrics["train/loss"] == 0.5
    assert not list(tmp_path.rglob("*.json"))


def test_a_killed_server_costs_nothing_and_gets_everything_when_it_is_back(server, tmp_path: Path) -> None:
    config = config_of(server.uri, "killed")
    names = {name: str(tmp_path / name) for name in ("lasting", "ending", "late")}
    lasting, ending = (open_run(config, names[name], {}) for name in ("lasting", "ending"))
    writer, ending_writer = RunWriter(lasting), RunWriter(ending)
    client = MlflowClient(server.uri)
    writer.metrics({"train/loss": 0.0}, 0)
    wait_until(lambda: len(client.get_metric_history(lasting.run_id, "train/loss")) == 1)

    server.kill()
    started = time.monotonic()
    for step in range(1, 1500):
        writer.metrics({"train/loss": float(step)}, step)
    writer.image("samples", np.zeros((4, 4, 3), np.uint8), 7)
    note = tmp_path / "note.txt"
    note.write_text("kept")
    writer.artifact(note)
    ending_writer.metrics({"train/loss": 3.0}, 5)
    ending_writer.artifact(note)
    assert time.monotonic() - started < 1
    late = open_run(config, names["late"], {"x": 1})
    assert late.run_id == ""
    late_writer = RunWriter(late)
    late_writer.metrics({"train/loss": 1.0}, 1)
    ending_writer.close(timeout_s=1)
    tracking.close_run(ending, "FINISHED")  # nobody hears it
    assert len(list((tmp_path / "ending" / "unsent").iterdir())) == 1

    server.start()
    writer.close(timeout_s=60)
    late_writer.close(timeout_s=60)
    for handle in (lasting, ending, late):
        tracking.close_run(handle, "FINISHED")
    history = client.get_metric_history(lasting.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1500))
    assert {file.path for file in client.list_artifacts(lasting.run_id)} == {"images", "note.txt"}
    runs = {run.data.tags["reddit.run_name"]: run for run in runs_of(server.uri, "killed")}
    assert set(runs) == set(names.values())
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[names["late"]].data.metrics["train/loss"] == 1.0
    assert runs[names["ending"]].data.metrics["train/loss"] == 3.0
    assert [file.path for file in client.list_artifacts(ending.run_id)] == ["note.txt"]
    assert not list((tmp_path / "ending").rglob("*.json"))


def test_a_killed_writer_has_kept_what_an_absent_server_missed(server, tmp_path: Path) -> None:
    """As Ray Tune kills a trial right after the validation for which it stops it."""
    output = str(tmp_path / "run")
    handle = open_run(config_of(server.uri, "killed-writer"), output, {})
    (port,) = free_ports(1)
    absent = f"http://127.0.0.1:{port}"
    script = (
        "import os, signal, sys, time; import numpy as np\n"
        "from pathlib import Path\n"
        "from pipelines.config.parts import StudentTrackingConfig\n"
        "from pipelines.tracking import RunWriter, plan_run\n"
        f"handle = plan_run(StudentTrackingConfig(uri={absent!r}, experiment='killed-writer'), {output!r}, {{}})\n"
        "writer = RunWriter(handle)\n"
        "writer.metrics({'validation/psnr': 17.5}, 30)\n"
        "writer.image('validation/4-to-2', np.zeros((8, 24, 3), np.uint8), 30)\n"
        "while not (writer._metrics.unavailable and writer._files.unavailable): time.sleep(0.05)\n"
        "writer.flush()\n"
        f"while not list(Path({output!r}).glob('unsent/*/index.json')): time.sleep(0.05)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    client = MlflowClient(server.uri)
    (batch,) = spill.load(output, tmp_path)
    tracking.close_run(handle, "FINISHED")
    spill.save(output, batch.points, batch.files)  # as if it had been sent and not yet removed
    tracking.close_run(handle, "FINISHED")
    (point,) = client.get_metric_history(handle.run_id, "validation/psnr")
    assert (point.value, point.step) == (17.5, 30)
    images = [file.path for file in client.list_artifacts(handle.run_id, "images")]
    assert sorted(Path(image).suffix for image in images) == [".png", ".webp"]
    assert not list(Path(output).rglob("index.json"))


def test_a_run_that_a_slow_server_made_twice_is_there_once(server) -> None:
    config, client = config_of(server.uri, "twins"), MlflowClient(server.uri)
    handle = open_run(config, "/data/twins", {"x": 1})
    (run,) = runs_of(server.uri, "twins")
    client.create_run(run.info.experiment_id, start_time=run.info.start_time + 1, tags=run.data.tags)
    assert len(runs_of(server.uri, "twins")) == 2
    assert open_run(config, "/data/twins", {"x": 1}).run_id == handle.run_id
    assert [one.info.run_id for one in runs_of(server.uri, "twins")] == [handle.run_id]


def test_a_new_output_of_an_old_name_has_a_run_of_its_own(server, tmp_path: Path) -> None:
    config, output = config_of(server.uri, "anew"), tmp_path / "run"
    run_ids = []
    for _ in range(2):
        for _ in range(2):
            with tracked_run(config, str(output), Settings(), job="distill") as handle:
                run_ids.append(handle.run_id)
        shutil.rmtree(output)
    assert (run_ids[0] == run_ids[1], run_ids[2] == run_ids[3]) == (True, True)
    assert len(set(run_ids)) == 2


@pytest.mark.parametrize(
    ("status", "kind"), [(413, RejectedError), (403, RejectedError), (429, UnavailableError), (502, UnavailableError)]
)
def test_what_a_proxy_answers_is_told_apart(status: int, kind: type[Exception]) -> None:
    answer = Response()
    answer.status_code = status
    with pytest.raises(kind), translated_errors("http://host"):
        raise HTTPError("an answer", response=answer)


def test_what_a_store_raises_by_itself_does_not_stop_a_job() -> None:
    with pytest.raises(RejectedError, match="ModuleNotFoundError"), translated_errors("http://host"):
        raise ModuleNotFoundError("No module named 'google.cloud'")
