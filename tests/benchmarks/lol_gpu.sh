#!/bin/sh
# LOL on one GPU: a teacher of preset lol, its cache, its students of 8, 4, 2 and 1 steps for three seeds, with
# refinement and without any, a report on whole validation images, and the weights as float16 in parts below 16 MiB.
#   tests/benchmarks/lol_gpu.sh FOLDER_OF_LOLv1 OUTPUT
# Run again, it resumes from the newest checkpoint and finishes what is missing. With MINUTES=25 it stops after so many,
# with status 75 as long as something is left. PRESET names another preset; TEACHER, SEGMENT, CACHE and STUDENTS hold
# further flags of the jobs, and must stay the same from run to run; STAGES and SEEDS say which students; JOBS and PYTHON
# can name other places.
set -eu
source=$1 output=$2
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} here=$(dirname "$0")
PRESET=${PRESET:-lol}
TEACHER=${TEACHER:---checkpoint.every 500}
SEGMENT=${SEGMENT:-}
CACHE=${CACHE:-}
# A student starts from its teacher's weights: few steps a stage, too few to be worth compiling.
STUDENTS=${STUDENTS:---distill.optim.steps 1000 --distill.optim.no-compile --distill.checkpoint.every 500
    --distill.checkpoint.validate-every 1000}
JUDGE=${JUDGE:---precision bf16}
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
    echo "the $minutes minutes are over; the same command resumes from here"
    exit 75
}

pairs=$output/pairs cache=$output/cache students=$output/students
teacher=$output/teacher/teacher.safetensors
# The segment is a part of the students' settings too, where its flags stand below "distill".
segment_of_students=$(echo "$SEGMENT" | sed 's/--segment/--distill.segment/g')

[ -f "$pairs/manifest.json" ] || within_time $python "$jobs/ingest.py" --source "$source" --layout lolv1 --output "$pairs"
within_time $python "$jobs/train_teacher.py" --preset "$PRESET" $TEACHER --tracking.no-enabled --pairs "$pairs" \
    --output "$output/teacher"
within_time $python "$jobs/precompute.py" --preset "$PRESET" $SEGMENT $CACHE --pairs "$pairs" --teacher "$teacher" \
    --output "$cache" --stages "$STAGES"
within_time $python "$jobs/experiments.py" --preset "$PRESET" $STUDENTS $segment_of_students \
    --distill.tracking.no-enabled --experiment refinement --seeds "$SEEDS" --distill.stages "$STAGES" \
    --distill.pairs "$pairs" --distill.cache "$cache" --distill.teacher "$teacher" --output "$students"
first=$students/students/unrefined-seed-${SEEDS%%,*}
weights="teacher:16=$teacher teacher:2=$teacher"
for file in "$first"/student-[0-9].safetensors; do
    steps=${file##*/student-}
    weights="$weights student:${steps%.safetensors}=$file"
done
within_time $python "$jobs/evaluate.py" $JUDGE --pairs "$pairs" --output "$output/report" --tracking.no-enabled \
    --weights $weights
within_time $python "$here/pack_weights.py" "$output/weights" "$teacher" "$first"/student-[0-9].safetensors
