"""MLflow: one run per job, found again by its name, and a writer that never holds up training.

This package is all that imports MLflow. Drivers open and close runs; whoever measures (a training worker, a
driver) writes to them by run id through a `RunWriter`. A tracking server that is slow or away costs log lines,
never an exception nor training time; what could be delivered later is.
"""

from pipelines.delivery.run_handle import OFF, InputData, RunHandle, default_uri
from pipelines.tracking.driving import Status, close_run, end_run, open_run, plan_run, send_kept
from pipelines.tracking.models import register_student
from pipelines.tracking.writing import RunWriter

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
