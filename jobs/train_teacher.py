"""Train the many-step diffusion teacher on pair shards."""

from jobs.cli import Job, main
from pipelines.config.teacher import TeacherConfig
from pipelines.training.teacher import plan_train_teacher, train_teacher

JOB = Job("train_teacher", TeacherConfig, plan_train_teacher, train_teacher)

if __name__ == "__main__":
    main(JOB)
