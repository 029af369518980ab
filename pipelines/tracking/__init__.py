"""MLflow tracking: one run per job, found again by its name, and a writer that never delays training.

Jobs open their run with `tracked_run`. Whatever measures something (a training worker, a driver) gets the run's handle
and writes through a `RunWriter`. A slow or absent tracking server costs log lines, never an exception or training time;
undelivered data is stored below the job's output and sent later.

Only `mlflow_backend` imports MLflow, which takes seconds, and a job starts many processes of which few use it. So its
functions are loaded on first use: write `tracking.end_run(...)` rather than importing the function.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipelines.tracking.handle import OFF, InputData, RunHandle, Status, default_uri
from pipelines.tracking.run import tracked_run
from pipelines.tracking.writer import RunWriter

if TYPE_CHECKING:
    from pipelines.tracking.mlflow_backend.driver import close_run, end_run, open_run, plan_run, send_spilled
    from pipelines.tracking.mlflow_backend.registry import register_student

__all__ = [
    "OFF",
    "InputData",
    "RunHandle",
    "RunWriter",
    "Status",
    "close_run",
    "default_uri",
    "end_run",
    "open_run",
    "plan_run",
    "register_student",
    "send_spilled",
    "tracked_run",
]

LOADED_ON_USE = {
    **dict.fromkeys(("close_run", "end_run", "open_run", "plan_run", "send_spilled"), "mlflow_backend.driver"),
    "register_student": "mlflow_backend.registry",
}


def __getattr__(name: str) -> Any:
    if name not in LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{LOADED_ON_USE[name]}"), name)
