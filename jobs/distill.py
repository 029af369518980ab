"""Distil the teacher into few-step students."""

from jobs.cli import Job, main
from pipelines.config.jobs import DistillConfig
from pipelines.training.distillation import distill, plan_distill

JOB = Job("distill", DistillConfig, plan_distill, distill)

if __name__ == "__main__":
    main(JOB)
