"""Which paths a job may use where its work lands on other machines."""

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines import cluster, threads
from pipelines.config import experiments, jobs, teacher, use
from pipelines.config.jobs import DistillConfig, IngestConfig, TuneConfig
from pipelines.config.parts import URL_SETTINGS, ComputeConfig, urls_of
from pipelines.config.use import EvaluateConfig

REMOTE = DistillConfig(cache="s3://b/cache", teacher="s3://b/t.safetensors", output="s3://b/out", pairs="s3://b/pairs")


def node(hostname: str, address: str, *, alive: bool = True) -> Mapping[str, Any]:
    return {"NodeManagerHostname": hostname, "NodeManagerAddress": address, "Alive": alive}


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says where there are two; tests/ray asks a real cluster."""
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", "10.0.0.1"), node("b", "10.0.0.2")])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})


@pytest.mark.parametrize(
    ("nodes", "cpus", "spread_out"),
    [
        ([node("a", "10.0.0.1")], 4, False),
        ([node("a", "10.0.0.1"), node("a", "10.0.0.1")], 4, False),  # several Ray nodes of one machine
        ([node("a", "10.0.0.1"), node("b", "10.0.0.2", alive=False)], 4, False),
        ([node("a", "10.0.0.1"), node("b", "10.0.0.2")], 4, True),
        ([node("localhost", "10.0.0.1"), node("localhost", "10.0.0.2")], 4, True),
        ([node("a", "10.0.0.1")], 0, True),  # a head that runs nothing, before its workers have come
    ],
)
def test_where_work_may_land(
    nodes: list[Mapping[str, Any]], cpus: float, spread_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus} if cpus else {})
    assert cluster.is_spread_out() == spread_out


@pytest.mark.parametrize(
    ("job_config", "setting"),
    [
        (DistillConfig(cache="s3://b/c", teacher="s3://b/t", output="runs/x"), "output is .*/runs/x, a local path"),
        (DistillConfig(cache="file:///d/c", teacher="s3://b/t", output="s3://b/x"), "cache is /d/c, a local path"),
        (IngestConfig(source="/data/LOLv1", output="s3://b/pairs"), "source is /data/LOLv1"),
        (EvaluateConfig(pairs="s3://b/p", output="s3://b/o", weights=("a:2=s3://b/w", "b:2=/w")), "weights is /w"),
        (
            TuneConfig(distill=replace(REMOTE, cache="/c"), output="s3://b/sweep"),
            "distill.cache is /c",
        ),
    ],
)
def test_a_local_path_is_refused(two_machines: None, job_config: Any, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}.*; use s3:// or .*--shared-folder FOLDER$") as error:
        cluster.reject_local_urls(job_config)
    assert "\n" not in str(error.value)


def test_stores_and_a_shared_folder_are_not_refused(two_machines: None) -> None:
    cluster.reject_local_urls(REMOTE)
    shared = IngestConfig(source="/mnt/data/LOLv1", output="/mnt/data")
    cluster.reject_local_urls(shared, "/mnt/data/")
    cluster.reject_local_urls(shared, "/")
    for other in ("/mnt/dat", "/mnt/data/LOLv1"):
        with pytest.raises(ValueError, match="a local path"):
            cluster.reject_local_urls(shared, other)


def test_one_machine_may_use_its_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", "10.0.0.1")])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    assert not cluster.is_spread_out()
    cluster.reject_local_urls(IngestConfig(source="in", output="out"))


def url_fields(source: str) -> Iterator[str]:
    """The fields that are said to be a URL by the docstring that follows them."""
    for cls in (thing for thing in ast.parse(source).body if isinstance(thing, ast.ClassDef)):
        for field, text in zip(cls.body, cls.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                if "URL" in str(text.value.value):
                    yield field.target.id


def test_every_setting_that_is_a_url_is_known_as_one() -> None:
    sources = [Path(str(module.__file__)).read_text() for module in (jobs, teacher, use, experiments)]
    assert {name for source in sources for name in url_fields(source)} == URL_SETTINGS
    assert dict(urls_of(REMOTE)) == {name: getattr(REMOTE, name) for name in ("cache", "teacher", "output", "pairs")}


@pytest.mark.parametrize(
    ("compute", "there", "fits"),
    [
        (ComputeConfig(workers=3), {"CPU": 4.0}, True),
        (ComputeConfig(workers=4), {"CPU": 4.0}, False),
        (ComputeConfig(workers=4, cpus_per_worker=0.5), {"CPU": 4.0}, True),
        (ComputeConfig(workers=(1, 8)), {"CPU": 8.0}, False),  # it grows until nothing is left
        (ComputeConfig(workers=(1, 8)), {"CPU": 8.0, "GPU": 4.0}, True),  # it grows as far as there are GPUs
    ],
)
def test_workers_leave_a_cpu_for_loading_their_data(
    compute: ComputeConfig,
    there: Mapping[str, float],
    fits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if fits:
        cluster.check_room(compute)
        return
    with pytest.raises(ValueError, match="loading their data needs 1 more, but Ray has"):
        cluster.check_room(compute)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster may still grow
    cluster.check_room(compute)
    assert "lower compute.workers or compute.cpus-per-worker, unless machines are added" in capsys.readouterr().err


def test_steady_threads_depend_neither_on_workers_nor_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads.torch_threads(ComputeConfig(workers=workers)) for workers in (1, 2, 3)] == [8, 4, 2]
    assert [threads.steady_threads(ComputeConfig(workers=workers)) for workers in (1, 2, 3)] == [1, 1, 1]
    assert threads.steady_threads(ComputeConfig(cpus_per_worker=2.5)) == 2
    assert threads.steady_threads(ComputeConfig(cpus_per_worker=0.5)) == 1
    assert threads.steady_threads(ComputeConfig(threads=3)) == 3


@pytest.mark.parametrize("compute", [ComputeConfig(workers=2), ComputeConfig(workers=(2, 4), gpu="yes")])
def test_more_gpus_than_there_are_would_be_waited_for_without_end(
    compute: ComputeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 1.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"2 workers need a GPU each, but Ray has 1; lower compute.workers, or use"):
        cluster.check_room(compute)
    cluster.check_room(ComputeConfig(workers=(1, 4)))
