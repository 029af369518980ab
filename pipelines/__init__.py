"""The science on Ray: everything between a URL of image pairs and a student that enhances photographs."""

import os

# Ray reads these when it is first imported, on drivers and, through the runtime environment, on workers: its own
# progress bars and routine messages make way for the jobs' progress, Ray Data raises errors without printing them, and
# two lines that do not apply are dropped from what others print: restart_notice.py has the first; with the second, Ray
# calls it a failure that its own Serve was shut down.
RESTART_NOTICE = "has constructor arguments in the object store"
SHUTDOWN_NOTICE = "ServeController.graceful_shutdown failed"
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_DEDUP_LOGS_SKIP_REGEX": f"{RESTART_NOTICE}|{SHUTDOWN_NOTICE}",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A local Ray listens on loopback only. This is its default on other systems, and its only switch on Linux.
LOOPBACK = {} if os.environ.get("RAY_ADDRESS") else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# PyTorch asks for huge pages when it allocates on a CPU. Otherwise a third of the time of a photograph of two
# megapixels goes to paging in 4 KB at a time.
PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
# MLflow decides about sending usage statistics while it is imported.
for _name, _value in {**QUIET, **LOOPBACK, **PAGES, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
    os.environ.setdefault(_name, _value)
