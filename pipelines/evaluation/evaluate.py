"""Honest evaluation: every method on every image of a split, raw and GT-mean side by side (Ray Data actors)."""

import base64
import csv
import hashlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray
from rich.console import Console

from pipelines import reporting, shards, storage
from pipelines.cluster import torch_threads, use_gpu
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation import report_page
from pipelines.evaluation.before_after import before_after
from pipelines.evaluation.judging import PROTOCOL, TRUTH, ImageRef, Judge, Method, methods_of, part_url, shown_methods
from pipelines.evaluation.report_page import Case
from pipelines.images import encode_png
from pipelines.pairs.ingest import split_shards
from pipelines.reporting import Report, Row
from pipelines.tracking import RunWriter
from pipelines.training import runs
from pipelines.weights import load_unet

PARTS = "parts"
BEFORE_AFTER, TABLE, PAGE = "before_after.png", "images.csv", "report.html"
HEAD = ("pair_id", "method", "steps", "seed")
COSTS = ("seconds_per_megapixel", "peak_mb_per_megapixel")
CASES_PER_END = 3
BOOTSTRAP_DRAWS = 2000
PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True)
class Judgement:
    """All that was measured: one row for each image, method and seed."""

    methods: Sequence[Method]
    rows: Sequence[Row]

    def of(self, method: Method) -> list[Row]:
        return [row for row in self.rows if (row["method"], row["steps"]) == (method.name, method.steps)]

    def per_image(self, method: Method, name: str) -> dict[str, float]:
        """A figure of each image, the mean over seeds, in the images' order."""
        values: dict[str, list[float]] = {}
        for row in self.of(method):
            values.setdefault(row["pair_id"], []).append(row[name])
        return {pair_id: float(np.mean(seeds)) for pair_id, seeds in values.items()}

    @property
    def figures(self) -> list[str]:
        """The names of what was measured of results, without costs."""
        return [name for name in self.rows[0] if name not in (*HEAD, *COSTS)]


def find_images(config: EvaluateConfig) -> list[ImageRef]:
    """The images of the split in order, at most `limit` of them."""
    manifest = shards.read_manifest(config.pairs, "pairs")
    refs = [ImageRef(entry, row) for entry in split_shards(manifest, config.split) for row in range(entry.rows)]
    return refs[: config.limit] if config.limit else refs


def fingerprint(config: EvaluateConfig, methods: Iterable[Method]) -> dict[str, Any]:
    """What decides the figures: the data, the weights by hash, and the settings of the evaluation."""
    urls = {method.key: method.url for method in methods if method.url} | {url: url for url in config.lpips}
    sha256 = {key: hashlib.sha256(read_weights(url)).hexdigest() for key, url in urls.items()}
    names = ("split", "seeds", "limit", "mode", "precision", "shown", "norm_groups")
    settings = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    return {"pairs_key": shards.read_manifest(config.pairs, "pairs").key, "weights_sha256": sha256, **settings}


def read_weights(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise ValueError(f"there are no weights at {url}; give the URL of a .safetensors or .pth file") from None


def finished_report(config: EvaluateConfig, evaluated: Mapping[str, Any]) -> Report | None:
    """The report that is there already, if it is of the same evaluation."""
    url = storage.join(config.output, "report.json")
    document = json.loads(storage.read_bytes(url)) if storage.exists(url) else {}
    if document.get("evaluated") != evaluated:
        return None
    facts = {"report": storage.join(config.output, PAGE)}
    return Report(title=f"Already evaluated: {config.output}", rows=document["rows"], facts=facts)


def evaluate(config: EvaluateConfig) -> Report:
    """Measures every method on every image; writes report.json, report.html, images.csv and before_after.png.

    Images that an interrupted evaluation judged are not judged again.

    Raises:
        ValueError: if the pairs, the split or some weights cannot be used.
    """
    images, methods = find_images(config), methods_of(config)
    shown_methods(config)
    evaluated = fingerprint(config, methods)
    if report := finished_report(config, evaluated):
        with runs.tracked_run(config.tracking, config.output, config, job="evaluate", done=True):
            return report
    for method in methods:
        if method.url:
            load_unet(method.url, config.norm_groups).schedule.grid(method.steps)
    storage.check_writable(config.output)
    with runs.tracked_run(config.tracking, config.output, config, job="evaluate") as run:
        parts = storage.join(config.output, PARTS, shards.spec_key(evaluated))
        judge_missing(config, images, parts)
        judgement = Judgement(methods, [row for i in range(len(images)) for row in read_part(parts, i)["rows"]])
        picture, page = draw(config, parts, len(images)), judged_page(config, parts, judgement)
        report = summarize(config, judgement, evaluated)
        files = {PAGE: page.encode(), TABLE: as_csv(judgement.rows), BEFORE_AFTER: encode_png(picture)}
        for name, data in files.items():
            storage.write_bytes(storage.join(config.output, name), data)
        with RunWriter(run) as writer:
            track(writer, report, picture, {name: files[name] for name in (PAGE, TABLE)})
    reporting.save(report)
    for name in storage.list_files(parts):
        storage.delete(storage.join(parts, name))
    return Report(title=report.title, rows=report.rows, facts=brief(config, report.facts))


def judge_missing(config: EvaluateConfig, images: Sequence[ImageRef], parts: str) -> None:
    """Runs the actor pool over the images that have no part yet.

    Raises:
        ValueError: what an image or its shard was refused for.
    """
    there = set(storage.list_files(parts))
    missing = [i for i in range(len(images)) if storage.name_of(part_url(parts, i)) not in there]
    if not missing:
        return
    gpu = use_gpu(config.compute)
    judged = ray.data.from_items([{"id": i} for i in missing], override_num_blocks=len(missing)).map_batches(
        Judge,
        fn_constructor_args=(config, images, parts, "cuda" if gpu else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=config.compute.min_workers, max_size=config.compute.max_workers),
        num_gpus=1 if gpu else None,
        num_cpus=None if gpu else config.compute.cpus_per_worker,
    )
    console, started, shown = Console(highlight=False), time.perf_counter(), 0.0
    for done, row in enumerate(judged.iter_rows(), start=1):
        if row["error"]:
            raise ValueError(row["error"])
        seconds = time.perf_counter() - started
        if seconds - shown >= PROGRESS_EVERY_S:
            shown, left = seconds, seconds / done * (len(missing) - done)
            console.print(f"evaluate {done}/{len(missing)} images, {done / seconds:.2f}/s, {left:.0f} s left")


def read_part(parts: str, index: int) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(storage.read_bytes(part_url(parts, index)))
    return part


def draw(config: EvaluateConfig, parts: str, num_images: int) -> NDArray[np.uint8]:
    """The grid of the first images."""
    rows = (read_part(parts, index)["shown"] for index in range(num_images))
    return before_after(shown_methods(config), [[base64.b64decode(png) for png in row] for row in rows if row])


def summarize(config: EvaluateConfig, judgement: Judgement, evaluated: Mapping[str, Any]) -> Report:
    """Means over images and seeds, with bootstrap intervals over images."""
    rows: list[Row] = []
    for method in judgement.methods:
        names = (*judgement.figures, *COSTS)
        means = {name: mean_of([row[name] for row in judgement.of(method)]) for name in names}
        rows.append({"method": method.name, "steps": method.steps, **means})
    facts = {
        "images": len(judgement.per_image(judgement.methods[0], "psnr")),
        "split": config.split,
        "seeds": list(config.seeds),
        "protocol": PROTOCOL,
        "intervals_95": intervals(judgement),
        "environment": environment(config),
        "evaluated": evaluated,
    }
    return Report(title="Evaluation", rows=rows, facts=facts, url=config.output)


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where it could not be measured."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def intervals(judgement: Judgement) -> list[Row]:
    """95 % intervals of the means, `LOW to HIGH`, one row for each method."""
    rows: list[Row] = []
    for method in judgement.methods:
        bounds = {name: bootstrap(list(judgement.per_image(method, name).values())) for name in judgement.figures}
        texts = {name: f"{low:.4g} to {high:.4g}" for name, (low, high) in bounds.items()}
        rows.append({"method": method.name, "steps": method.steps, **texts})
    return rows


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled images (seeded; Efron 1979)."""
    sample = np.random.default_rng(0).choice(values, size=(BOOTSTRAP_DRAWS, len(values)))
    low, high = np.percentile(sample.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def environment(config: EvaluateConfig) -> dict[str, Any]:
    """What seconds and memory depend on."""
    gpu = use_gpu(config.compute)
    return {
        "device": "GPU of a worker" if gpu else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "threads": torch_threads(config.compute),
        "workers": config.compute.workers,
        "precision": config.precision,
        "torch": torch.__version__,
    }


def brief(config: EvaluateConfig, facts: Row) -> dict[str, Any]:
    """What the terminal shows of the facts."""
    short = {name: facts[name] for name in ("images", "split", "seeds")}
    return {**short, **{name: storage.join(config.output, name) for name in (PAGE, TABLE, BEFORE_AFTER)}}


def judged_page(config: EvaluateConfig, parts: str, judgement: Judgement) -> str:
    """The HTML report; only the pictures of the cases that it shows are read."""
    report = summarize(config, judgement, {})
    facts = {name: report.facts[name] for name in ("images", "split", "seeds", "protocol", "environment")}
    weights = {f"weights of {method.key}": method.url for method in judgement.methods if method.url}
    title = f"Evaluation on {config.split}: {report.facts['images']} images"
    cases = find_cases(parts, judgement)
    return report_page.render(title, report.rows, {**facts, **weights}, report.facts["intervals_95"], cases)


def find_cases(parts: str, judgement: Judgement) -> list[Case]:
    """Each network's worst and best images by raw PSNR; an image that is several of these comes once, worst first."""
    reasons: dict[str, list[str]] = {}
    for end in ("worst", "best"):
        for method in judgement.methods:
            if not method.url:
                continue
            ranked = sorted((value, pair_id) for pair_id, value in judgement.per_image(method, "psnr").items())
            chosen = ranked[:CASES_PER_END] if end == "worst" else ranked[::-1][:CASES_PER_END]
            for place, (value, pair_id) in enumerate(chosen, start=1):
                reasons.setdefault(pair_id, []).append(f"{end} {place} of {method.key} ({value:.2f} dB)")
    order = list(judgement.per_image(judgement.methods[0], "psnr"))
    return [make_case(pair_id, why, read_part(parts, order.index(pair_id))) for pair_id, why in reasons.items()]


def make_case(pair_id: str, reasons: Sequence[str], part: Mapping[str, Any]) -> Case:
    figures: dict[str, Row] = {}
    for row in part["rows"]:
        figures.setdefault(f"{row['method']}:{row['steps']}", row)
    pictures = {key: data for key, data in part["pictures"].items() if key != TRUTH}
    return Case(
        pair_id=pair_id, reasons=reasons, figures=figures, pictures={**pictures, TRUTH: part["pictures"][TRUTH]}
    )


def track(writer: RunWriter, report: Report, picture: NDArray[np.uint8], files: Mapping[str, bytes]) -> None:
    for row in report.rows:
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        writer.metrics({f"evaluation/{row['method']}/{name}": value for name, value in values.items()}, row["steps"])
    writer.image("evaluation/before_after", picture, 0)
    with tempfile.TemporaryDirectory(prefix="reddit-report-") as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.write_bytes(data)
            writer.artifact(path, "evaluation")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def plan_evaluate(config: EvaluateConfig) -> Report:
    """How many images would be judged by which methods."""
    images, methods = find_images(config), methods_of(config)
    shown_methods(config)
    rows = [{"method": method.name, "steps": method.steps, "weights": method.url} for method in methods]
    calls = len(images) * len(config.seeds) * sum(method.steps for method in methods)
    facts = {"network calls": calls, "seeds": config.seeds}
    return Report(title=f"Plan of evaluate: {len(images)} images of {config.split}", rows=rows, facts=facts)
