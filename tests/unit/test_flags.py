"""Every flag of every job is read by that job."""

import importlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.unit.reads import Source, Symbol, settings_read

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "JOB = Job(" in path.read_text())


def symbol_of(config: type) -> Symbol:
    return config.__module__, config.__name__


def declared_in(config: type, name: str) -> type:
    return next(base for base in reversed(config.__mro__) if name in getattr(base, "__annotations__", {}))


def settings_of(config: Any) -> Iterator[tuple[type, str]]:
    """(class that declares it, field) of each setting of a config and its parts."""
    hints = get_type_hints(config)
    for field in fields(config):
        if is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name])
        else:
            yield declared_in(config, field.name), field.name


@cache
def source() -> Source:
    return Source(ROOT, ("jobs", "pipelines", "reddit_core"))


@cache
def read_by(job: str) -> frozenset[tuple[Symbol, str]]:
    config = importlib.import_module(f"jobs.{job}").JOB.config
    configs = {symbol_of(owner) for owner, _ in settings_of(config)} | {symbol_of(config)}
    return frozenset(settings_read(source(), (f"jobs.{job}", "JOB"), configs))


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_is_read(job: str) -> None:
    config = importlib.import_module(f"jobs.{job}").JOB.config
    settings = {(symbol_of(owner), name) for owner, name in settings_of(config)}
    assert len(settings) >= 3
    assert sorted(settings - read_by(job)) == []


def test_what_another_job_reads_does_not_count() -> None:
    model = (("pipelines.config.parts", "StudentTrackingConfig"), "model")
    assert model in read_by("distill") and model not in read_by("train_teacher") | read_by("evaluate")
    failures = (("pipelines.config.parts", "TrainingComputeConfig"), "max_failures")
    assert failures in read_by("train_teacher") and failures not in read_by("enhance")
