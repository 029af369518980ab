"""Run the teacher once over the pairs and cache its trajectories."""

from jobs.cli import Job, main
from pipelines.config.jobs import PrecomputeConfig
from pipelines.trajectories.precompute import plan_precompute, precompute

JOB = Job("precompute", PrecomputeConfig, plan_precompute, precompute)

if __name__ == "__main__":
    main(JOB)
