"""The experiments of the paper, made of the jobs ingest, distill and evaluate."""
