#!/bin/sh
# A LOL teacher of the released size, its cache, its students of 8, 4, 2 and 1 steps for three seeds, with the default
# refinement and without any, all of them judged, and the weights as float16 in parts below 16 MiB.
#   tests/benchmarks/lol_gpu.sh FOLDER_OF_LOLv1 OUTPUT [v|eps]
# Run again, it goes on from the newest checkpoint and finishes what is missing. With MINUTES=25 it stops after so many,
# with status 75 as long as something is left. TEACHER, SEGMENT, CACHE and STUDENTS hold the jobs' flags, and must stay
# the same from run to run; STAGES and SEEDS say which students; JOBS and PYTHON can name other places.
set -eu
source=$1 output=$2 prediction=${3:-v}
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} here=$(dirname "$0")
off=--tracking.no-enabled
TEACHER=${TEACHER:---preset paper --optim.steps 60000 --optim.batch-size 64 --optim.learning-rate 2e-4
    --optim.ema-decay 0.9995 --checkpoint.every 500 --checkpoint.validate-every 5000 --checkpoint.validation-crop 0}
SEGMENT=${SEGMENT:---segment.crop 96 --segment.crops 32}
CACHE=${CACHE:---precision bf16 --batch-size 128}
STUDENTS=${STUDENTS:---distill.optim.steps 4000 --distill.optim.batch-size 64 --distill.optim.learning-rate 1e-4
    --distill.optim.precision bf16 --distill.checkpoint.every 500 --distill.checkpoint.validate-every 2000}
STAGES=${STAGES:-16,8,4,2} SEEDS=${SEEDS:-0,1,2}
minutes=${MINUTES:-0}
end=$(($(date +%s) + minutes * 60))

# Runs a command for as long as there is time; what it has done by then is kept.
within_time() {
    left=0 # no limit
    if [ "$minutes" -gt 0 ]; then
        left=$((end - $(date +%s)))
        [ "$left" -gt 0 ] || out_of_time
    fi
    status=0
    timeout --kill-after 60 "$left" "$@" || status=$?
    [ "$status" -ne 124 ] && [ "$status" -ne 137 ] || out_of_time
    [ "$status" -eq 0 ] || exit "$status"
}

out_of_time() {
    echo "the $minutes minutes are over; the same command goes on from here"
    exit 75
}

pairs=$output/pairs
teacher=$output/teacher-$prediction
cache=$output/cache-$prediction
students=$output/students-$prediction
# The segment is a part of the students' settings too, where its flags stand below "distill".
segment_of_students=$(echo "$SEGMENT" | sed 's/--segment/--distill.segment/g')

[ -f "$pairs/manifest.json" ] || within_time $python "$jobs/ingest.py" --source "$source" --layout lolv1 --output "$pairs"
within_time $python "$jobs/train_teacher.py" $off $TEACHER --unet.prediction "$prediction" --pairs "$pairs" --output "$teacher"
within_time $python "$jobs/precompute.py" $SEGMENT $CACHE --pairs "$pairs" --teacher "$teacher/teacher.safetensors" \
    --output "$cache" --stages "$STAGES"
within_time $python "$jobs/experiments.py" $STUDENTS $segment_of_students --distill.tracking.no-enabled \
    --experiment refinement --seeds "$SEEDS" --distill.stages "$STAGES" --distill.pairs "$pairs" \
    --distill.cache "$cache" --distill.teacher "$teacher/teacher.safetensors" --output "$students"
within_time $python "$here/pack_weights.py" "$output/weights-$prediction" "$teacher/teacher.safetensors" \
    "$students"/students/*-seed-"${SEEDS%%,*}"/student-[0-9].safetensors
