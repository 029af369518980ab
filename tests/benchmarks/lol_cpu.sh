#!/bin/sh
# The weights that are shipped: the whole pipeline on LOL-v1 with the default network, on two CPU cores.
#   tests/benchmarks/lol_cpu.sh FOLDER_OF_LOLv1 OUTPUT
# Run again, it resumes and finishes what is missing. JOBS and PYTHON can name other places.
set -eu
source=$1 output=$2
python=${PYTHON:-.venv/bin/python} jobs=${JOBS:-jobs} here=$(dirname "$0")
pairs=$output/pairs students=$output/students
teacher=$output/teacher/teacher.safetensors
licence="LOL-v1 states no licence; it was published for research (Wei et al. 2018)"

[ -f "$pairs/manifest.json" ] || $python "$jobs/ingest.py" --source "$source" --layout lolv1 --output "$pairs"
# Trains into $output/NAME: teach NAME FLAGS...
teach() {
    name=$1
    shift
    $python "$jobs/train_teacher.py" --preset lol-cpu --pairs "$pairs" --output "$output/$name" --compute.threads 1 \
        --tracking.no-enabled "$@"
}
weights_of() { echo "$output/$1/teacher.safetensors"; }

# Crops that grow, then inputs that the network has made itself, then detail: each part is a cosine of its own.
teach teacher-128
teach teacher-160 --init "$(weights_of teacher-128)" --crop 160 --optim.steps 3500 --optim.learning-rate 7e-4
teach teacher-rollout --init "$(weights_of teacher-160)" --crop 160 --rollout 2 --optim.steps 1500 --optim.learning-rate 7e-4
teach teacher-detail --init "$(weights_of teacher-rollout)" --crop 160 --rollout 2 --ssim 1 --detail 0.08 \
    --optim.steps 1000 --optim.learning-rate 5e-4
[ -f "$teacher" ] || $python "$here/mean_weights.py" "$teacher" \
    0.65="$(weights_of teacher-detail)" 0.35="$(weights_of teacher-rollout)"
# With the teacher online, since it takes over where the student is; detail, since squared errors alone blur it again.
$python "$jobs/distill.py" --preset lol-cpu --pairs "$pairs" --trajectories online --rollout 2 --teacher "$teacher" \
    --stages 16,8,4,2 --loss.ssim 1 --loss.detail 0.04 --output "$students" --compute.threads 1 --tracking.no-enabled \
    --tracking.licence "$licence"
$python "$jobs/evaluate.py" --pairs "$pairs" --output "$output/report" --compute.threads 1 --tracking.no-enabled \
    --weights teacher:16="$teacher" teacher:2="$teacher" \
    student:8="$students/student-8.safetensors" student:4="$students/student-4.safetensors" \
    student:2="$students/student-2.safetensors" student:1="$students/student-1.safetensors"
$python "$here/ship_weights.py" "$output/weights" --report "$output/report" --machine "$(uname -m), one thread" \
    lol-teacher="$teacher" lol-student-8="$students/student-8.safetensors" \
    lol-student-4="$students/student-4.safetensors" lol-student-2="$students/student-2.safetensors" \
    lol-student-1="$students/student-1.safetensors"
