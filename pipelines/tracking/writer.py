"""The writer of a run, for any process: MLflow behind the buffers of `buffer.py`."""

from pipelines.tracking.buffer import BufferedWriter
from pipelines.tracking.handle import RunHandle


class RunWriter(BufferedWriter):
    """Writes to the run of a handle from any process; MLflow is loaded only when tracking is on."""

    def __init__(self, handle: RunHandle) -> None:
        if handle.request is None:
            super().__init__(None)
            return
        from pipelines.tracking.mlflow_backend.transport import MlflowTransport  # noqa: PLC0415 - loads MLflow

        super().__init__(MlflowTransport(handle))
