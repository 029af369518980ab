"""Evaluation: every method on every image of a split, raw and GT-mean figures side by side (Ray Data actors)."""

import base64
import csv
import hashlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from pipelines import failures, reporting, shards, storage
from pipelines.cluster import actor_pool, check_gpus, device_of, rounds, use_gpu
from pipelines.config.parts import as_json
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation import report_page
from pipelines.evaluation.before_after import before_after
from pipelines.evaluation.judge import PROTOCOL, SHOWN_IMAGES, ImageRef, Judge, part_url
from pipelines.evaluation.methods import Method, methods_of, shown_methods
from pipelines.evaluation.results import COSTS, Results, find_cases, intervals, mean_of, read_part, read_rows
from pipelines.images import encode_png
from pipelines.pairs.dataset import split_shards
from pipelines.progress import Progress
from pipelines.redaction import redact
from pipelines.reporting import Report, Row
from pipelines.restart_notice import without_restart_notice
from pipelines.shards import shards_hash
from pipelines.threads import torch_threads
from pipelines.tracking import RunWriter, tracked_run
from pipelines.weights import load_distances, load_network

PARTS = "parts"
BEFORE_AFTER, TABLE, PAGE = "before_after.png", "images.csv", "report.html"


def find_images(config: EvaluateConfig) -> list[ImageRef]:
    """The images of the split in order, at most `limit` of them."""
    manifest = shards.read_manifest(config.pairs, "pairs")
    refs = [ImageRef(entry, row) for entry in split_shards(manifest, config.split) for row in range(entry.rows)]
    return refs[: config.limit] if config.limit else refs


def fingerprint(config: EvaluateConfig, methods: Iterable[Method]) -> dict[str, Any]:
    """Everything that determines the figures: the data, the weights by hash, and the settings of the evaluation."""
    urls = {method.key: method.url for method in methods if method.url}
    urls |= {f"lpips {number} {storage.base_name(redact(url))}": url for number, url in enumerate(config.lpips, 1)}
    sha256 = {key: hashlib.sha256(read_weights(url)).hexdigest() for key, url in urls.items()}
    names = ("split", "seeds", "limit", "mode", "precision", "shown")
    settings = {name: value for name, value in as_json(config).items() if name in names}
    manifest = shards.read_manifest(config.pairs, "pairs")
    pairs = {"pairs_key": manifest.key, "pairs_shards": shards_hash(split_shards(manifest, config.split))}
    return {**pairs, "weights_sha256": sha256, **settings}


def read_weights(url: str) -> bytes:
    """The bytes of a weights file; raises ValueError if there is none."""
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise ValueError(f"there are no weights at {url}; give the URL of a .safetensors or .pth file") from None


def check_weights(config: EvaluateConfig, methods: Iterable[Method]) -> None:
    """Raises ValueError for weights and LPIPS backbones that the actors could not use, before any is started."""
    for method in methods:
        if method.url:
            load_network(method.url).schedule.grid(method.steps)
    load_distances(config.lpips)


def finished_report(config: EvaluateConfig, evaluated: Mapping[str, Any]) -> Report | None:
    """The report of an earlier run with the same fingerprint, else None."""
    url = storage.join(config.output, reporting.FILE)
    document = json.loads(storage.read_bytes(url)) if storage.exists(url) else {}
    if document.get("evaluated") != evaluated:
        return None
    facts = {"report": storage.join(config.output, PAGE)}
    return Report(title=f"Already evaluated: {config.output}", rows=document["rows"], facts=facts)


def evaluate(config: EvaluateConfig) -> Report:
    """Measures every method on every image; writes report.json, report.html, images.csv and before_after.png.

    Resumes an interrupted evaluation: images that have a part are not measured again.

    Raises:
        ValueError: if the pairs, the split or some weights cannot be used.
    """
    images, methods = find_images(config), methods_of(config)
    shown_methods(config)
    evaluated = fingerprint(config, methods)
    if report := finished_report(config, evaluated):
        with tracked_run(config.tracking, config.output, config, job="evaluate", done=True):
            return report
    check_weights(config, methods)
    check_gpus(config.compute)
    storage.check_writable(config.output)
    with tracked_run(config.tracking, config.output, config, job="evaluate") as run:
        parts = storage.join(config.output, PARTS, shards.spec_key(evaluated))
        judge_missing(config, images, parts)
        results = Results(methods, read_rows(parts, len(images)))
        picture, page = draw_grid(config, parts, len(images)), make_page(config, parts, results)
        report = summarize(config, results, evaluated)
        files = {PAGE: page.encode(), TABLE: as_csv(results.rows), BEFORE_AFTER: encode_png(picture)}
        for name, data in files.items():
            storage.write_bytes(storage.join(config.output, name), data)
        with RunWriter(run) as writer:
            log_report(writer, report, picture, {name: files[name] for name in (PAGE, TABLE)})
    reporting.save(report)
    for name in storage.list_files(parts):
        storage.delete(storage.join(parts, name))
    return Report(title=report.title, rows=report.rows, facts=brief(config, report.facts))


def judge_missing(config: EvaluateConfig, images: Sequence[ImageRef], parts: str) -> None:
    """Runs the actor pool over the images that have no part yet.

    Raises:
        ValueError: if an image or its shard cannot be used.
        OSError: if storage could not be read or written.
    """
    there = set(storage.list_files(parts))
    missing = [i for i in range(len(images)) if storage.base_name(part_url(parts, i)) not in there]
    if not missing:
        return
    judged = (row for part in rounds(missing) for row in judge_pool(config, images, parts, part).iter_rows())
    with (
        failures.user_errors("evaluation", kept="what was judged is kept"),
        without_restart_notice(),
        Progress("evaluate", len(missing), "images") as progress,
    ):
        for _ in judged:
            progress.advance()


def judge_pool(
    config: EvaluateConfig, images: Sequence[ImageRef], parts: str, chosen: Sequence[int]
) -> ray.data.Dataset:
    """The dataset that measures the chosen images in a pool of actors, one row per image."""
    return ray.data.from_items([{"id": i} for i in chosen], override_num_blocks=len(chosen)).map_batches(
        Judge,
        fn_constructor_args=(config, images, parts, device_of(config.compute)),
        batch_size=1,
        **actor_pool(config.compute),
    )


def draw_grid(config: EvaluateConfig, parts: str, num_images: int) -> NDArray[np.uint8]:
    """`before_after.png` of the first `SHOWN_IMAGES` images, [H, W, 3] uint8."""
    rows = [read_part(parts, index)["shown"] for index in range(min(num_images, SHOWN_IMAGES))]
    return before_after(shown_methods(config), [[base64.b64decode(png) for png in row] for row in rows])


def summarize(config: EvaluateConfig, results: Results, evaluated: Mapping[str, Any]) -> Report:
    """Means over images and seeds, with bootstrap intervals over images."""
    rows: list[Row] = []
    for method in results.methods:
        names = (*results.figures, *COSTS)
        means = {name: mean_of([row[name] for row in results.of(method)]) for name in names}
        rows.append({"method": method.name, "steps": method.steps, **means})
    facts = {
        "images": len(results.per_image(results.methods[0], "psnr")),
        "split": config.split,
        "pairs": redact(config.pairs),
        "sampler": config.mode,
        "seeds": list(config.seeds),
        "protocol": PROTOCOL,
        "intervals_95": intervals(results),
        **({"images_left_out_of_means": left_out} if (left_out := results.left_out) else {}),
        "environment": environment(config),
        "evaluated": evaluated,
    }
    return Report(title="Evaluation", rows=rows, facts=facts, url=config.output)


def environment(config: EvaluateConfig) -> dict[str, Any]:
    """Everything that time and memory depend on: device, threads, workers, precision and the version of torch."""
    gpu = use_gpu(config.compute)
    return {
        "device": "GPU of a worker" if gpu else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "threads": torch_threads(config.compute),
        "workers": config.compute.workers,
        "precision": config.precision,
        "torch": torch.__version__,
    }


def brief(config: EvaluateConfig, facts: Row) -> dict[str, Any]:
    """The facts that the terminal shows."""
    short = {name: facts[name] for name in ("images", "split", "seeds", "images_left_out_of_means") if name in facts}
    return {**short, **{name: storage.join(config.output, name) for name in (PAGE, TABLE, BEFORE_AFTER)}}


def make_page(config: EvaluateConfig, parts: str, results: Results) -> str:
    """The HTML report. Of the pictures in the parts, only those of the shown cases are read."""
    report = summarize(config, results, {})
    names = ("images", "split", "pairs", "sampler", "seeds", "protocol", "environment")
    facts = {name: report.facts[name] for name in names} | {"pictures": f"of seed {config.seeds[0]}"}
    weights = {f"weights of {method.key}": redact(method.url) for method in results.methods if method.url}
    title = f"Evaluation on {config.split}: {report.facts['images']} images"
    cases = find_cases(parts, results)
    return report_page.render(title, report.rows, {**facts, **weights}, report.facts["intervals_95"], cases)


def log_report(writer: RunWriter, report: Report, picture: NDArray[np.uint8], files: Mapping[str, bytes]) -> None:
    """Logs the figures as metrics by number of steps, the grid as an image, and the files as artifacts."""
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
    """Equal-keyed rows as CSV with a header."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def plan_evaluate(config: EvaluateConfig) -> Report:
    """Number of images, methods and network calls; runs nothing."""
    images, methods = find_images(config), methods_of(config)
    shown_methods(config)
    check_weights(config, methods)
    rows = [{"method": method.name, "steps": method.steps, "weights": redact(method.url)} for method in methods]
    calls = len(images) * len(config.seeds) * sum(method.steps for method in methods)
    facts = {"network calls": calls, "seeds": config.seeds}
    return Report(title=f"Plan of evaluate: {len(images)} images of {config.split}", rows=rows, facts=facts)
