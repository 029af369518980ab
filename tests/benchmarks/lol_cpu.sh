#!/bin/sh
# The whole pipeline on LOL-v1 with a network that two CPU cores can train: what 2026-11-24-lol-cpu.md reports.
#   tests/benchmarks/lol_cpu.sh FOLDER_OF_LOLv1 OUTPUT v|eps
# Run again, it finishes what is missing. JOBS and PYTHON can name other places.
set -eu
source=$1 output=$2 prediction=$3
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} precision=${PRECISION:-fp32}
pairs=$output/pairs
teacher=$output/teacher-$prediction/teacher.safetensors
cache=$output/cache-$prediction
students=$output/students-$prediction
on="--pairs $pairs --compute.threads 1"
off="--tracking.no-enabled"

[ -d "$pairs" ] || $python "$jobs/ingest.py" --source "$source" --layout lolv1 --output "$pairs"
$python "$jobs/train_teacher.py" $on $off --preset lol-cpu --unet.prediction "$prediction" --output "$output/teacher-$prediction"
$python "$jobs/precompute.py" $on --preset lol-cpu --teacher "$teacher" --output "$cache" --stages 16,8,4,2
$python "$jobs/distill.py" $on $off --preset lol-cpu --cache "$cache" --teacher "$teacher" --output "$students" \
    --stages 16,8,4,2
$python "$jobs/distill.py" $on $off --preset lol-cpu --cache "$cache" --teacher "$teacher" --output "$students-w0" \
    --stages 4 --refine-weight 0
$python "$jobs/evaluate.py" $on $off --output "$output/report-$prediction" --precision "$precision" \
    --weights teacher:16="$teacher" teacher:2="$teacher" \
    student:8="$students/student-8.safetensors" student:4="$students/student-4.safetensors" \
    student:2="$students/student-2.safetensors" student:1="$students/student-1.safetensors" \
    student-w0:2="$students-w0/student-2.safetensors"
