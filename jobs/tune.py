"""Search over the refinement and loss weights; every trial reads the one shared cache."""

from jobs.cli import Job, main
from pipelines.config.jobs import TuneConfig
from pipelines.search.tune import plan_tune, tune

# Ray Train asks the dashboard's State API before it takes back the workers of a trial that was stopped early.
JOB = Job("tune", TuneConfig, plan_tune, tune, dashboard=True)

if __name__ == "__main__":
    main(JOB)
