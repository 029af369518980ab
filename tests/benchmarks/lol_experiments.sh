#!/bin/sh
# The paper's three experiments on LOL-v1 with the default network: one command each, on whole validation images.
#   tests/benchmarks/lol_experiments.sh refinement|steps|darkness PAIRS TEACHER OUTPUT
# PAIRS and TEACHER are what lol_cpu.sh leaves. Students, which the experiments share, take over from their own steps
# (rollouts); three seeds for refinement, the first of them elsewhere. Run again, it finishes what is missing. SEEDS,
# STEPS (of a stage), JOBS and PYTHON can be set.
set -eu
experiment=$1 pairs=$2 teacher=$3 output=$4
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs}
seeds=0 flags=""
[ "$experiment" = refinement ] && seeds=0,1,2
[ "$experiment" = darkness ] && flags="--limit 4 --stops 3 5 7"
# shellcheck disable=SC2086
exec $python "$jobs/experiments.py" --preset lol-cpu --experiment "$experiment" --output "$output" --seeds "${SEEDS:-$seeds}" $flags \
    --distill.pairs "$pairs" --distill.teacher "$teacher" --distill.trajectories online --distill.rollout 2 \
    --distill.stages 16,8,4,2 --distill.optim.steps "${STEPS:-150}" --distill.compute.threads 1 \
    --distill.checkpoint.validate-every 50 --distill.tracking.no-enabled
