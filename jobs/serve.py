"""Serve a student over HTTP: a page for people, and an API for programs."""

from typing import Any

from jobs.cli import Job, Sources, as_flags, flatten, main, parse
from pipelines.config.serving import ServeConfig
from pipelines.extras import require_packages
from pipelines.reporting import Report

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "watchfiles")


def plan(config: ServeConfig) -> Report:
    require_packages("serve", NEEDED)
    from pipelines.serving.service import plan_service  # noqa: PLC0415 - of an extra

    return plan_service(config)


def run(config: ServeConfig) -> Report:
    require_packages("serve", NEEDED)
    from pipelines.serving.service import run_service  # noqa: PLC0415 - of an extra

    return run_service(config)


JOB = Job("serve", ServeConfig, plan, run, serves=True)


def build(settings: dict[str, Any]) -> Any:
    """The application for `serve run jobs.serve:build weights=URL` and for KubeRay; settings are named as the flags."""
    require_packages("serve", NEEDED)
    from pipelines.cluster import start_ray  # noqa: PLC0415 - slow to import
    from pipelines.serving.service import application  # noqa: PLC0415 - of an extra

    # `serve run` connects after this, too late for what depends on the cluster's GPUs.
    start_ray(serves=True)
    return application(parse(JOB, Sources(), list(as_flags(dict(flatten(settings))))))


if __name__ == "__main__":
    main(JOB)
