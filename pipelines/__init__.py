"""The science on Ray: everything between a URL of image pairs and a student that enhances photographs."""

import os

# MLflow decides about sending usage statistics while it is imported, so this stands before every import of ours.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
