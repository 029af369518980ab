"""Measure weights on a split of the pairs."""

from jobs.cli import Job, main
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate, plan_evaluate

JOB = Job("evaluate", EvaluateConfig, plan_evaluate, evaluate)

if __name__ == "__main__":
    main(JOB)
