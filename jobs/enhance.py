"""Enhance a photograph, a folder or a bucket of them."""

from jobs.cli import Job, main
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhance import enhance, needs_ray, plan_enhance

JOB = Job("enhance", EnhanceConfig, plan_enhance, enhance, needs_ray=needs_ray)

if __name__ == "__main__":
    main(JOB)
