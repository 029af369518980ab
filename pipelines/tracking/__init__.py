"""MLflow: one run per job, found again by its name, and a writer that never holds up training.

This package is all that imports MLflow. Drivers open and close runs; whoever measures (a training worker, a
driver) writes to them by run id through a `RunWriter`. A tracking server that is slow or away costs log lines,
never an exception nor training time; what could be delivered later is.

MLflow takes seconds to import, and a job starts many processes of which few talk to it: it is loaded by the first
use of what needs it, so write `tracking.open_run(...)` rather than importing the function.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipelines.tracking.run import OFF, InputData, RunHandle, Status, default_uri
from pipelines.tracking.run_writer import RunWriter

if TYPE_CHECKING:
    from pipelines.tracking.mlflow_backend.driver import close_run, end_run, open_run, plan_run, send_kept
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
    "send_kept",
]

USES_MLFLOW = {
    **dict.fromkeys(("close_run", "end_run", "open_run", "plan_run", "send_kept"), "mlflow_backend.driver"),
    "register_student": "mlflow_backend.registry",
}


def __getattr__(name: str) -> Any:
    if name not in USES_MLFLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{USES_MLFLOW[name]}"), name)
