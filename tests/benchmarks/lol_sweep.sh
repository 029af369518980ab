#!/bin/sh
# A sweep over the reflectance and loss weights on LOL-v1's cache, then the best weights at full length beside the
# authors' published ones (w = 0.8, pixel 1.0) and beside none (w = 0), all judged on the validation split.
#   tests/benchmarks/lol_sweep.sh PAIRS TEACHER CACHE OUTPUT
# PAIRS and TEACHER are what lol_cpu.sh leaves, CACHE what precompute makes of them (--stages 16,8,4,2). The authors'
# perceptual term (0.6) needs a VGG16 or AlexNet that is not at hand, so it is left out everywhere. Run again, it finishes
# what is missing. TRIALS, TRIAL_STEPS, JOBS and PYTHON can be set; MLflow is found as always (MLFLOW_TRACKING_URI, else runs/mlflow.db).
set -eu
pairs=$1 teacher=$2 cache=$3 output=$4
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} precision=${PRECISION:-fp32}
trials=${TRIALS:-16} trial_steps=${TRIAL_STEPS:-90}
look=$((trial_steps / 3))  # a poor trial is stopped at the first of three looks
# Strengths that lie far apart, as choices: a range of logarithms has no 0 in it, and an even one little below 0.1.
strengths="0,0.002,0.005,0.01,0.02,0.05,0.1,0.2,0.8"
$python "$jobs/tune.py" --preset lol-cpu --output "$output/sweep" --trials "$trials" --trial-steps "$trial_steps" \
    --space "refine_weight=choice($strengths)" "loss.pixel=uniform(0,2)" "optim.learning_rate=loguniform(5e-5,1e-3)" \
    --points refine_weight=0 refine_weight=0.8,loss.pixel=1.0 --metric psnr --grace-steps "$look" --then-distill \
    --distill.pairs "$pairs" --distill.teacher "$teacher" --distill.cache "$cache" --distill.output "$output/best" \
    --distill.stages 4 --distill.compute.threads 1 \
    --distill.checkpoint.every "$look" --distill.checkpoint.validate-every "$look" \
    --distill.tracking.experiment lol-sweep

distil() {
    name=$1
    shift
    $python "$jobs/distill.py" --preset lol-cpu --pairs "$pairs" --teacher "$teacher" --cache "$cache" \
        --output "$output/$name" --stages 4 --compute.threads 1 --tracking.experiment lol-sweep "$@"
}
distil published --refine-weight 0.8 --loss.pixel 1.0
distil w0 --refine-weight 0
$python "$jobs/evaluate.py" --pairs "$pairs" --output "$output/report" --precision "$precision" --compute.threads 1 \
    --tracking.experiment lol-sweep --weights teacher:2="$teacher" \
    best:2="$output/best/student-2.safetensors" published:2="$output/published/student-2.safetensors" \
    w0:2="$output/w0/student-2.safetensors"
