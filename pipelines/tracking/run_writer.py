"""What a training worker or a driver writes with."""

from pipelines.tracking.run import RunHandle
from pipelines.tracking.writer import BufferedWriter


class RunWriter(BufferedWriter):
    """Writes to the run of a handle from wherever things are measured; see `BufferedWriter` for what it promises."""

    def __init__(self, handle: RunHandle) -> None:
        if handle.request is None:
            super().__init__(None)
            return
        from pipelines.tracking.mlflow_backend.transport import RunLink  # noqa: PLC0415 - loads MLflow

        super().__init__(RunLink(handle))
