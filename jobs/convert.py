"""Convert a released .pth into safetensors of this project."""

from jobs.cli import Job, main
from pipelines.config.use import ConvertConfig
from pipelines.convert import convert, plan_convert

JOB = Job("convert", ConvertConfig, plan_convert, convert)

if __name__ == "__main__":
    main(JOB)
