"""Export a student with its sampler to ONNX and torch.export."""

from jobs.cli import Job, main
from pipelines.config.use import ExportConfig
from pipelines.enhancement.exporting import export, plan_export

JOB = Job("export", ExportConfig, plan_export, export)

if __name__ == "__main__":
    main(JOB)
