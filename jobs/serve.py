"""Serve a student over HTTP: a page for people, and an API for programs."""

import importlib.util
from typing import Any

from jobs.cli import Job, Sources, as_flags, flatten, main, parse
from pipelines.config.serving import ServeConfig
from pipelines.reporting import Report

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "watchfiles")


def plan(config: ServeConfig) -> Report:
    check_extra()
    from pipelines.serving.service import plan_service  # noqa: PLC0415 - of an extra

    return plan_service(config)


def run(config: ServeConfig) -> Report:
    check_extra()
    from pipelines.serving.service import run_service  # noqa: PLC0415 - of an extra

    return run_service(config)


def check_extra() -> None:
    """Raises ValueError if a package that only this job needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {', '.join(missing)}; install them with pip install 'reddit-on-ray[serve]'")


JOB = Job("serve", ServeConfig, plan, run, in_memory=True)


def build(settings: dict[str, Any]) -> Any:
    """The application for `serve run jobs.serve:build weights=URL` and for KubeRay; settings are named as the flags."""
    from pipelines.serving.service import application  # noqa: PLC0415 - of an extra

    return application(parse(JOB, Sources(), list(as_flags(dict(flatten(settings))))))


if __name__ == "__main__":
    main(JOB)
