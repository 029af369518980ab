"""Turn image pairs at any URL into pair shards, split by scene."""

from jobs.cli import Job, main
from pipelines.config.jobs import IngestConfig
from pipelines.pairs.ingest import ingest, plan_ingest

JOB = Job("ingest", IngestConfig, plan_ingest, ingest)

if __name__ == "__main__":
    main(JOB)
