"""Fingerprints of everything that the pipeline makes, to be compared before and after a refactor.

    python tests/benchmarks/same_results.py > before.txt     # on the old commit
    python tests/benchmarks/same_results.py > after.txt      # on the new one, same machine
    diff before.txt after.txt

Runs ingest, train_teacher (20 steps), precompute and distill (cached, online, released) on
small random pairs. Prints one line per fact: the keys of datasets and caches, the checksum of every shard,
and a SHA-256 of the tensors of all weights. Deterministic on one machine; takes about two minutes on two cores.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
UNET = "--network sr3-unet --unet.base-channels 8 --unet.channel-mults 1 2 --unet.num-res-blocks 1 --unet.norm-groups 4"
OPTIM = "--optim.batch-size 4 --optim.learning-rate 1e-3 --optim.warmup-steps 2 --compute.threads 1"
QUIET = "--tracking.no-enabled"


def make_source(folder: Path) -> None:
    """A LOLv1 folder of ten smooth random pairs, 96 x 80 pixels."""
    rng = np.random.default_rng(0)
    for side in ("low", "high"):
        (folder / "our485" / side).mkdir(parents=True)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        normal = np.asarray(coarse.resize((96, 80), Image.Resampling.BICUBIC))
        for side, image in (("low", normal // 8), ("high", normal)):
            Image.fromarray(image).save(folder / "our485" / side / f"{number}.png")


def run(job: str, flags: str) -> None:
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


def tensors_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def print_facts(root: Path) -> None:
    """One line per key, shard and weights file below the folder, in the order of their paths."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.suffix == ".safetensors" and "checkpoint" not in str(name) and path.name != "state.safetensors":
            print(name, tensors_hash(path))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            print(name, "key", manifest["key"])
            for entry in manifest["shards"]:
                print(name, entry["name"], entry["rows"], entry["sha256"])


def main() -> None:
    # Of one name, because the URL of the source is part of what a dataset's key hashes.
    root = Path(tempfile.gettempdir(), "reddit-same-results")
    shutil.rmtree(root, ignore_errors=True)
    try:
        make_source(root / "source")
        pairs, teacher, cache = f"{root}/pairs", f"{root}/teacher/teacher.safetensors", f"{root}/cache"
        run("ingest", f"--source {root}/source --output {pairs} --validation-share 0.5 --pairs-per-shard 4")
        train = "--optim.steps 20 --checkpoint.every 10 --checkpoint.validate-every 20 --checkpoint.validation-crop 64"
        run(
            "train_teacher",
            f"--pairs {pairs} --output {root}/teacher --crop 32 --validation-steps 2 {UNET} {OPTIM} {train} {QUIET}",
        )
        segment = "--segment.crop 32 --segment.crops 2"
        run("precompute", f"--pairs {pairs} --teacher {teacher} --output {cache} --stages 4,2 {segment}")
        inputs = f"--pairs {pairs} --teacher {teacher} {segment} {OPTIM} {train} {QUIET} --optim.steps 10"
        run("distill", f"{inputs} --cache {cache} --stages 4,2 --output {root}/cached")
        run("distill", f"{inputs} --trajectories online --stages 4 --output {root}/online")
        run(
            "distill",
            f"{inputs} --cache {cache} --stages 4 --output {root}/released --reflectance.range released "
            "--refine-weight 0.8",
        )
        print_facts(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
