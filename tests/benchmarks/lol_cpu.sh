#!/bin/sh
# The whole pipeline on LOL-v1 with a network that two CPU cores can train.
#   tests/benchmarks/lol_cpu.sh FOLDER_OF_LOLv1 OUTPUT v|eps
# Run again, it finishes what is missing. JOBS and PYTHON can name other places. The students lie where
# lol_ablation.py --output OUTPUT and jobs/experiments.py --output OUTPUT/v|eps look for theirs.
set -eu
source=$1 output=$2 prediction=$3
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} precision=${PRECISION:-fp32}
pairs=$output/pairs
teacher=$output/teacher-$prediction/teacher.safetensors
cache=$output/cache-$prediction
students=$output/$prediction/students
on="--pairs $pairs --compute.threads 1"
off="--tracking.no-enabled"

[ -f "$pairs/manifest.json" ] || $python "$jobs/ingest.py" --source "$source" --layout lolv1 --output "$pairs"
$python "$jobs/train_teacher.py" $on $off --preset lol-cpu --unet.prediction "$prediction" --output "$output/teacher-$prediction"
$python "$jobs/precompute.py" $on --preset lol-cpu --teacher "$teacher" --output "$cache" --stages 16,8,4,2
for student in refined unrefined; do
    weight=""
    [ "$student" = refined ] || weight="--refine-weight 0"
    $python "$jobs/distill.py" $on $off --preset lol-cpu --cache "$cache" --teacher "$teacher" --stages 16,8,4,2 $weight \
        --output "$students/$student-seed-0"
done
$python "$jobs/evaluate.py" $on $off --output "$output/report-$prediction" --precision "$precision" \
    --weights teacher:16="$teacher" teacher:2="$teacher" \
    refined:8="$students/refined-seed-0/student-8.safetensors" refined:4="$students/refined-seed-0/student-4.safetensors" \
    refined:2="$students/refined-seed-0/student-2.safetensors" refined:1="$students/refined-seed-0/student-1.safetensors" \
    unrefined:2="$students/unrefined-seed-0/student-2.safetensors"
