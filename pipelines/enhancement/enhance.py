"""Enhances photographs at any URL with a student: one in, one out, by a pool of actors (Ray Data)."""

import io
import json
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray.data
import torch
from PIL import Image

from pipelines import failures, reporting, shards, storage
from pipelines.cluster import actor_pool, check_gpus, device_of, rounds, torch_threads
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhancer import COMPARISONS, Enhancer, Work, results_of
from pipelines.enhancement.photo_files import EXTENSIONS
from pipelines.images import DAMAGE
from pipelines.progress import Progress
from pipelines.redaction import redact
from pipelines.reporting import Report
from pipelines.restart_notice import without_restart_notice
from pipelines.weights import load_hashed_network, load_student
from reddit_core.student import result_brightness, sampling_steps

SETTINGS = "enhance.json"
# One photograph is enhanced while its predecessor is encoded and its successor read and decoded.
CALLS_PER_ACTOR = 3
MEASURED_SIDE, MEASURED_FILES = 128, 16


def find_work(config: EnhanceConfig) -> Work:
    """Lists the source and what of it was enhanced before.

    Raises:
        ValueError: if there is no photograph, the weights cannot be used, or the output was made with others.
    """
    steps, sha256 = steps_of(config)
    root, files = list_source(config)
    names = [name for name in files if name.lower().endswith(EXTENSIONS)]
    if not names:
        raise ValueError(f"{config.source} holds no photograph; give a folder or file of {', '.join(EXTENSIONS)}")
    settings = {
        "photographs": redact(root),
        "weights_sha256": sha256,
        "steps": steps,
        **{name: getattr(config, name) for name in ("seed", "tile", "overlap", "precision")},
        **({} if config.asked_brightness is None else {"brightness": config.asked_brightness}),
    }
    present = set(storage.list_files(config.output))
    if SETTINGS in present:
        made = json.loads(storage.read_bytes(storage.join(config.output, SETTINGS)))
        shards.require_match(made, settings, f"what was enhanced at {config.output}")
    elif taken := present.intersection(names):
        raise ValueError(f"{config.output} holds a file {min(taken)}, and no job made it; give another folder")
    missing = [name for name in names if not set(results_of(config, name)) <= present]
    return Work(root, names, missing, len(files) - len(names), steps, settings)


def list_source(config: EnhanceConfig) -> tuple[str, list[str]]:
    """The folder of the source, and the files below it by relative name; of a single file, its own folder and name.

    Raises:
        ValueError: if there is nothing, results would land among the photographs, or a name leaves the output.
    """
    source, output = storage.resolve(config.source), storage.resolve(config.output)
    files = storage.list_files(source)
    root = source if files else posixpath.dirname(source)
    if not files and not storage.exists(source):
        raise ValueError(f"there is nothing at {source}; give the URL of a photograph or of a folder of them")
    if output == root or (files and output.startswith(source + "/")):
        raise ValueError(
            f"output {output} lies in the folder of the photographs, whose names it would take; give another folder"
        )
    for name in files:
        storage.join(output, name)  # an object store's keys may hold any text
        if config.compare and name.startswith(f"{COMPARISONS}/"):
            raise ValueError(f"{name} lies where --compare puts its pictures; rename {COMPARISONS} at {source}")
    return root, files or [posixpath.basename(source)]


def steps_of(config: EnhanceConfig) -> tuple[int, str]:
    """The number of sampling steps and the SHA-256 of the weights.

    Raises:
        ValueError: if the weights do not say their steps or a brightness that they need, and nobody else does, or the
            number of steps does not suit the schedule.
    """
    file, sha256 = load_hashed_network(config.weights)
    result_brightness(file, config.asked_brightness)
    return sampling_steps(file, config.steps, config.weights), sha256


def enhance(config: EnhanceConfig) -> Report:
    """Enhances every photograph of the source whose result is not there yet.

    What is there counts as done: to have a photograph made again, delete its result.

    Raises:
        ValueError: if the source, weights or output cannot be used, or not one photograph could be enhanced.
        OSError: if storage fails for longer than retries last; a rerun goes on.
    """
    work = find_work(config)
    check_gpus(config.compute)
    storage.check_writable(config.output)
    storage.write_bytes(storage.join(config.output, SETTINGS), json.dumps(work.settings, indent=1).encode())
    started = time.perf_counter()
    results = run(config, work) if work.missing else []
    bad = sorted((row["name"], row["reason"]) for row in results if row["reason"])
    good = [row for row in results if not row["reason"]]
    report = summarize(config, work, good, bad, time.perf_counter() - started)
    reporting.save(report)
    if len(bad) == len(work.names):
        raise ValueError(f"none of the {len(bad)} photographs can be enhanced; {bad[0][0]}: {bad[0][1]}")
    return report


def run(config: EnhanceConfig, work: Work) -> list[Mapping[str, Any]]:
    """Enhances what is missing; one small row for each photograph comes back."""
    parts = (replace(work, names=(), missing=part) for part in rounds(work.missing))
    rows = (row for part in parts for row in enhancing(config, part).iter_rows())
    with failures.user_errors("enhancement", kept="what was enhanced is kept"), without_restart_notice():
        return gather(rows, len(work.missing))


def enhancing(config: EnhanceConfig, work: Work) -> ray.data.Dataset:
    """The actor pool over the photographs of a round."""
    return ray.data.range(len(work.missing), override_num_blocks=len(work.missing)).map_batches(
        Enhancer,
        fn_constructor_args=(config, work, device_of(config.compute)),
        batch_size=1,
        **actor_pool(config.compute, calls=CALLS_PER_ACTOR, in_flight=CALLS_PER_ACTOR + 1),
    )


def gather(rows: Iterable[Mapping[str, Any]], total: int) -> list[Mapping[str, Any]]:
    """The rows of all photographs, with progress; each photograph that was left out is named at once.

    Raises:
        OSError: if storage failed.
    """
    gathered: list[Mapping[str, Any]] = []
    megapixels, started = 0.0, time.perf_counter()
    with Progress("enhance", total, "photographs") as progress:
        for row in rows:
            if row["of_storage"]:
                raise OSError(
                    f"storage failed at {row['name']} ({row['of_storage']}); what was enhanced is kept; mend it, and "
                    "run the same command again to go on"
                )
            gathered.append(row)
            if row["reason"]:
                progress.print(f"enhance: left out {row['name']}: {row['reason']}")
            megapixels += row["megapixels"]
            progress.advance(note=f"{megapixels / (time.perf_counter() - started):.2f} megapixels/s")
    return gathered


def summarize(
    config: EnhanceConfig,
    work: Work,
    good: Sequence[Mapping[str, Any]],
    bad: Sequence[tuple[str, str]],
    seconds: float,
) -> Report:
    megapixels = sum(row["megapixels"] for row in good)
    rows = [
        {"photographs": "enhanced now", "count": len(good)},
        {"photographs": "done before", "count": len(work.names) - len(work.missing)},
        {"photographs": "left out", "count": len(bad)},
    ]
    facts = {
        "steps": work.steps,
        "seconds": seconds,
        "megapixels": megapixels,
        "network seconds per megapixel": sum(row["seconds"] for row in good) / megapixels if good else None,
        "files that are no photographs": work.ignored,
        **{f"left out: {name}": reason for name, reason in bad},
    }
    title = "Enhanced" if work.missing else "Already done: every photograph is enhanced"
    return Report(title=f"{title}: {config.output}", rows=rows, facts=facts, url=config.output)


def plan_enhance(config: EnhanceConfig) -> Report:
    """What would be enhanced, and about how long it would take on this machine; writes nothing."""
    work = find_work(config)
    sizes = [megapixels_of(storage.join(work.root, name)) for name in work.missing[:MEASURED_FILES]]
    megapixels = float(np.mean(sizes)) * len(work.missing) if sizes else 0.0
    rows = [
        {"photographs": "to enhance", "count": len(work.missing)},
        {"photographs": "done before", "count": len(work.names) - len(work.missing)},
    ]
    facts = {
        "steps": work.steps,
        "megapixels, about": megapixels,
        "minutes on one CPU worker, about": megapixels * seconds_per_megapixel(config, work.steps) / 60,
        f"above {config.tile} x {config.tile} pixels": "tiled, which takes two to five times as long",
        "files that are no photographs": work.ignored,
    }
    return Report(title=f"Plan of enhance: {work.root} to {config.output}", rows=rows, facts=facts)


def seconds_per_megapixel(config: EnhanceConfig, steps: int) -> float:
    """Measured on a small picture in one piece, on this machine's CPU; the second of two runs."""
    torch.set_num_threads(torch_threads(config.compute))
    student = load_student(config.weights, "cpu", config.precision, steps=steps)
    picture = np.random.default_rng(0).integers(0, 64, (MEASURED_SIDE, MEASURED_SIDE, 3), dtype=np.uint8)
    for _ in range(2):
        started = time.perf_counter()
        student.enhance(picture, seed=config.seed)
    return (time.perf_counter() - started) / (MEASURED_SIDE**2 / 1e6)


def megapixels_of(url: str) -> float:
    """From the header alone; 0 for what is no image, or cannot be read."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(url))) as image:
            return image.width * image.height / 1e6
    except DAMAGE:
        return 0.0
