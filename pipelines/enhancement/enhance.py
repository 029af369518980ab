"""Enhances photographs at any URL with a student: one in, one out."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pipelines import formats, reporting, storage
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhancer import Enhancer
from pipelines.enhancement.photo_files import megapixels_of
from pipelines.enhancement.photograph import TooLargeError
from pipelines.enhancement.work import Work, find_work, is_one_photograph, write_settings
from pipelines.progress import Progress
from pipelines.reporting import Report
from pipelines.threads import torch_threads
from pipelines.weights import load_student
from reddit_core.student import Student

MEASURED_SIDE = 128
# Bytes that hold the header of nearly every photograph; the plan reads so many of them at a time.
HEADER_BYTES, READERS = 2**18, 16
MOST_SAMPLES = 8


def needs_ray(config: EnhanceConfig) -> bool:
    """Whether Ray does the work: always on a cluster, and for a folder; one photograph is quicker without its start."""
    return bool(os.environ.get("RAY_ADDRESS")) or not is_one_photograph(config)


def enhance(config: EnhanceConfig) -> Report:
    """Enhances every photograph of the source whose result is not there yet.

    What is there counts as done: to have a photograph made again, delete its result. A result that is named as a file
    is always made.

    Raises:
        ValueError: if the source, weights or output cannot be used, or not one photograph could be enhanced.
        OSError: if storage fails for longer than retries last; a rerun resumes.
    """
    work = find_work(config)
    rows = start(config, work) if work.missing else iter(())
    if not config.writes_one_file:
        storage.check_writable(config.output)
        write_settings(config, work)
        rows = sampled(config, work, rows)
    started = time.perf_counter()
    results = gather(rows, len(work.missing))
    bad = sorted([*work.unusable.items(), *((row["name"], row["reason"]) for row in results if row["reason"])])
    good = [row for row in results if not row["reason"]]
    report = summarize(config, work, good, bad, time.perf_counter() - started)
    if report.url:
        reporting.save(report)
    if len(bad) == work.num_photographs:
        raise ValueError(f"none of the {len(bad)} photographs can be enhanced; {bad[0][0]}: {bad[0][1]}")
    return report


def start(config: EnhanceConfig, work: Work) -> Iterator[Mapping[str, Any]]:
    """The rows of `Enhancer.process`, one for each photograph, as they are finished."""
    if needs_ray(config):
        from pipelines.enhancement.pool import enhance_on_ray  # noqa: PLC0415 - imports Ray

        return enhance_on_ray(config, work)
    device = "cuda" if config.compute.gpu != "no" and torch.cuda.is_available() else "cpu"
    if config.compute.gpu == "yes" and device == "cpu":
        raise ValueError("compute.gpu is yes, but torch finds no GPU here; use --compute.gpu auto or no")
    enhancer = Enhancer(config, work, device)
    return map(enhancer.process, work.missing)


def sampled(config: EnhanceConfig, work: Work, rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Passes rows on, and records the SHA-256 of a few enhanced photographs with the settings.

    By them the photographs are recognized in another place.
    """
    for row in rows:
        if row["sha256"] and len(work.settings["samples"]) < MOST_SAMPLES:
            work.settings["samples"][row["name"]] = row["sha256"]
            write_settings(config, work)
        yield row


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
                    f"storage failed at {row['name']} ({row['of_storage']}); what was enhanced is kept; fix it, and "
                    "run the same command again to resume"
                )
            gathered.append(row)
            if row["reason"]:
                progress.print(f"enhance: left out {row['name']}: {row['reason']}")
            if row["notes"]:
                progress.print(f"enhance: {row['name']}: {row['notes']}")
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
        **{f"left out: {name}": reason for name, reason in bad},
        **work.facts,
        **{f"not kept: {row['name']}": row["notes"] for row in good if row["notes"]},
    }
    title = "Enhanced" if work.missing or bad else "Already done: every photograph is enhanced"
    url = "" if config.writes_one_file else config.output
    return Report(title=f"{title}: {config.output}", rows=rows, facts=facts, url=url)


def plan_enhance(config: EnhanceConfig) -> Report:
    """What would be enhanced, and about how long it would take on this machine; writes nothing."""
    work = find_work(config)
    with ThreadPoolExecutor(READERS) as pool:
        sizes = dict(zip(work.missing, pool.map(lambda name: look_at(config, work, name), work.missing), strict=True))
    bad = {**work.unusable, **{name: size for name, size in sizes.items() if isinstance(size, str)}}
    megapixels = sum(size for size in sizes.values() if not isinstance(size, str))
    student = load_student(config.weights, "cpu", config.precision, steps=work.steps)
    most, side = student.tiling(config.tile)
    rows = [
        {"photographs": "to enhance", "count": sum(not isinstance(size, str) for size in sizes.values())},
        {"photographs": "done before", "count": len(work.names) - len(work.missing)},
        {"photographs": "left out", "count": len(bad)},
    ]
    facts = {
        "steps": work.steps,
        "megapixels": megapixels,
        "minutes on one CPU worker, about": megapixels * seconds_per_megapixel(config, student) / 60,
        "tiled": f"above {most / 1e6:.4g} megapixels, {side} pixels a side",
        **{f"left out: {name}": reason for name, reason in bad.items()},
        **work.facts,
    }
    return Report(title=f"Plan of enhance: {work.root} to {config.output}", rows=rows, facts=facts)


def look_at(config: EnhanceConfig, work: Work, name: str) -> float | str:
    """A photograph's megapixels by its header, or why it would be left out as far as the header tells."""
    url = work.url_of(name)
    try:
        if formats.format_of(name) not in ("RAW", "TIFF"):  # whose header may be anywhere
            try:
                return megapixels_of(storage.read_range(url, 0, HEADER_BYTES), config.max_megapixels)
            except TooLargeError as error:
                return str(error)
            except ValueError:
                pass  # a header that is longer, or damage
        return megapixels_of(storage.read_bytes(url), config.max_megapixels)
    except (ValueError, OSError) as error:
        return f"it cannot be read ({type(error).__name__})" if isinstance(error, OSError) else str(error)


def seconds_per_megapixel(config: EnhanceConfig, student: Student) -> float:
    """Measured on a small picture in one piece, on this machine's CPU; the second of two runs."""
    torch.set_num_threads(torch_threads(config.compute))
    picture = np.random.default_rng(0).integers(0, 64, (MEASURED_SIDE, MEASURED_SIDE, 3), dtype=np.uint8)
    for _ in range(2):
        started = time.perf_counter()
        student.enhance(picture, seed=config.seed)
    return (time.perf_counter() - started) / (MEASURED_SIDE**2 / 1e6)
