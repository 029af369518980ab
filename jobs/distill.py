"""Distil the teacher into few-step students."""

from jobs.cli import Job, main
from pipelines.config import DistillConfig
from pipelines.distillation import distill, plan_distill

JOB = Job("distill", DistillConfig, plan_distill, distill)

if __name__ == "__main__":
    main(JOB)
