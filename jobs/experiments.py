"""Run one of the paper's experiments, from the trajectory cache to a report."""

from jobs.cli import Job, main
from pipelines.config.experiments import ExperimentConfig
from pipelines.experiments.experiment import experiment, plan_experiment

JOB = Job("experiments", ExperimentConfig, plan_experiment, experiment)

if __name__ == "__main__":
    main(JOB)
