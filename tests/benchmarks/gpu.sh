#!/bin/sh
# What is measured on a GPU, a part at a call; what it prints is in OUTPUT/PART.txt too.
#   tests/benchmarks/gpu.sh tests|share|jobs|enhance|lol OUTPUT [FOLDER_OF_LOLv1]
# tests: pytest -m gpu. share: forward and training step as a share of the matmul rate, and against the released loop.
# jobs: precompute and distill against bare loops. enhance: 1, 2, 4, 8 steps on 4 and on 24 megapixels. lol: lol_gpu.sh
# for 25 minutes (MINUTES says otherwise); again resumes.
# SMALL=1 runs every part on a CPU in minutes, to see that it works; its figures mean nothing.
set -eu
part=$1 output=$2 source=${3:-}
python=${PYTHON:-.venv/bin/python} here=$(dirname "$0")
mkdir -p "$output"
export PYTHONPATH=. MINUTES="${MINUTES:-25}"

if [ -n "${SMALL:-}" ]; then
    export REDDIT_GPU_TESTS_ON=cpu PRESET=demo SEEDS=0 STAGES=4,2 JUDGE=--limit=2 SEGMENT="--segment.crops 1"
    export TEACHER="--optim.steps 20 --checkpoint.validate-every 0 --compute.threads 1"
    export STUDENTS="--distill.optim.steps 10 --distill.checkpoint.validate-every 0 --distill.compute.threads 1 --limit 2"
    bench="--device cpu --rounds 1 --crop 64 --batch 2" bf16="--precision fp32" large="--device cpu --side 256 --repeats 1"
    larger="$large" steps="--steps 16" shards="--shards 2 --batches 1"
else
    bench='' bf16='' large="--side 2048 --precision bf16" larger="--side 4899 --precision bf16 --repeats 2"
    steps='' shards=''
fi

run() {
    echo "\$ $*"
    "$python" "$@"
}

measure() {
    case $part in
    tests) run -m pytest -m gpu ;;
    share)
        run "$here/bench_teacher.py" $bench --profile
        run "$here/bench_distill.py" $bench $bf16 --compile --profile
        run "$here/bench_distill.py" $bench $bf16 --compile --network released
        ;;
    jobs)
        run "$here/bench_precompute.py" $bench $bf16 $shards
        run "$here/bench_training.py" $bench $bf16 $steps --no-two
        ;;
    enhance)
        run "$here/bench_enhance.py" $large
        run "$here/bench_enhance.py" $larger
        ;;
    lol) "$here/lol_gpu.sh" "$source" "$output/lol" ;;
    *) echo "part $part is unknown; give tests, share, jobs, enhance or lol" && return 2 ;;
    esac
}

trap 'cat "$output/$part.txt"' EXIT
measure >"$output/$part.txt" 2>&1
