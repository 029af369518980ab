"""Export a student with its sampler to ONNX and torch.export, or for other programs."""

from jobs.cli import Job, main
from pipelines.config.use import ExportConfig
from pipelines.enhancement.exporting import export, plan_export
from pipelines.enhancement.hosting import export_for_hosts
from pipelines.reporting import Report


def run(config: ExportConfig) -> Report:
    return export_for_hosts(config) if config.host else export(config)


JOB = Job("export", ExportConfig, plan_export, run)

if __name__ == "__main__":
    main(JOB)
