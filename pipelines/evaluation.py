"""Honest evaluation: every method on every image of a split, raw and GT-mean side by side (Ray Data actors)."""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
import torch
from kornia.enhance import equalize_clahe
from numpy.typing import NDArray

from pipelines import reporting, runs, shards, storage
from pipelines.before_after import before_after
from pipelines.cluster import torch_threads
from pipelines.config import EvaluateConfig
from pipelines.images import encode_png
from pipelines.pairs import decode_pair, split_shards
from pipelines.records import cached_shard, to_images
from pipelines.reporting import Report
from pipelines.shards import ShardEntry
from pipelines.tracking import RunWriter
from pipelines.weights import load_unet
from reddit_core.lpips import Lpips
from reddit_core.metrics import quality
from reddit_core.sampler import enhance

INPUT, CLAHE = "input", "clahe"
CLAHE_CLIP, CLAHE_GRID = 40.0, (8, 8)
SHOWN_IMAGES = 4
BOOTSTRAP_DRAWS = 1000
PROTOCOL = (
    "whole images, mirrored at the right and bottom to the network's multiple; RGB rounded to 8 bits; PSNR with data "
    "range 1; SSIM 11x11 Gaussian window, sigma 1.5, valid windows, mean over RGB; gt_mean scales the estimate to the "
    "ground truth's mean luma first, so it uses the ground truth; sharpness is Laplacian energy over the ground truth's"
)


@dataclass(frozen=True)
class Method:
    """One row of the report: what is done to the input, in how many steps, with which weights."""

    name: str
    steps: int
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Reads NAME:STEPS=URL."""
        head, separator, url = text.partition("=")
        name, _, steps = head.partition(":")
        if not (separator and url and name and steps.isdigit() and int(steps)):
            raise ValueError(
                f"weights holds {text!r}, but must be NAME:STEPS=URL, such as student:2=runs/x.safetensors"
            )
        return cls(name, int(steps), url)

    @property
    def key(self) -> str:
        return f"{self.name}:{self.steps}"


def shown_methods(config: EvaluateConfig) -> list[Method]:
    """The methods whose pictures are kept.

    Raises:
        ValueError: if one of them is not evaluated.
    """
    methods = {method.key: method for method in methods_of(config)}
    unknown = [key for key in config.shown if key not in methods]
    if unknown:
        raise ValueError(f"shown holds {unknown[0]!r}, but only {', '.join(methods)} are evaluated; name one of these")
    return [methods[key] for key in config.shown] if config.shown else list(methods.values())


def methods_of(config: EvaluateConfig) -> list[Method]:
    return [Method(INPUT, 0), Method(CLAHE, 0), *(Method.parse(text) for text in config.weights)]


@dataclass(frozen=True)
class ImageRef:
    """Where one image of the split lies."""

    entry: ShardEntry
    row: int


class Judge:
    """Runs every method on images and measures the results; networks are loaded once."""

    def __init__(self, config: EvaluateConfig, images: Sequence[ImageRef], device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.config, self.images, self.device = config, images, torch.device(device)
        self.methods, self.shown = methods_of(config), shown_methods(config)
        files = {method.url: load_unet(method.url, config.norm_groups) for method in self.methods if method.url}
        self.files = files
        for file in files.values():
            file.unet.to(self.device)
        self.lpips = Lpips(storage.read_tensors(config.lpips)).to(self.device) if config.lpips else None

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        index = int(batch["id"][0])
        image = self.images[index]
        pair = cached_shard(self.config.pairs, image.entry).slice(image.row, 1).to_pylist()[0]
        low, normal = decode_pair(pair)
        rows: list[dict[str, Any]] = []
        pictures: dict[str, NDArray[np.uint8]] = {}
        for method in self.methods:
            for seed in self.config.seeds if method.url else self.config.seeds[:1]:
                estimate, seconds = self.run(method, low, seed)
                rows.append(
                    {
                        "pair_id": pair["pair_id"],
                        "method": method.name,
                        "steps": method.steps,
                        "seed": seed,
                        **self.measure(estimate, normal),
                        "seconds_per_megapixel": seconds / (low.shape[0] * low.shape[1] / 1e6),
                    }
                )
                if seed == self.config.seeds[0]:
                    pictures[method.key] = estimate
        kept = [pictures[method.key] for method in self.shown] if index < SHOWN_IMAGES else []
        shown = [encode_png(picture) for picture in [*kept, normal]] if kept else []
        return {"index": [index], "rows": [rows], "shown": [shown]}

    def run(self, method: Method, low: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint8], float]:
        """A method's 8-bit result and the seconds that its network took."""
        if method.name == INPUT:
            return low, 0.0
        image = to_images(low[None], self.device)
        started = time.perf_counter()
        if method.name == CLAHE:
            unit = equalize_clahe((image + 1) / 2, CLAHE_CLIP, CLAHE_GRID)
        else:
            file = self.files[method.url]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
                unit = (enhance(file.unet, image, file.schedule, method.steps, seed, self.config.mode) + 1) / 2
        result = (unit[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return result, time.perf_counter() - started

    def measure(self, estimate: NDArray[np.uint8], normal: NDArray[np.uint8]) -> dict[str, float]:
        estimate_unit, normal_unit = ((to_images(x[None], self.device) + 1) / 2 for x in (estimate, normal))
        metrics = {name: float(value) for name, value in quality(estimate_unit, normal_unit).items()}
        if self.lpips:
            with torch.no_grad():
                metrics["lpips"] = float(self.lpips(estimate_unit * 2 - 1, normal_unit * 2 - 1))
        return metrics


def find_images(config: EvaluateConfig) -> list[ImageRef]:
    """The images of the split in order, at most `limit` of them."""
    manifest = shards.read_manifest(config.pairs, "pairs")
    refs = [ImageRef(entry, row) for entry in split_shards(manifest, config.split) for row in range(entry.rows)]
    return refs[: config.limit] if config.limit else refs


def fingerprint(config: EvaluateConfig, methods: Iterable[Method]) -> dict[str, Any]:
    """What decides the figures: the data, the weights by hash, and the settings of the evaluation."""
    sha256 = {m.key: hashlib.sha256(storage.read_bytes(m.url)).hexdigest() for m in methods if m.url}
    names = ("split", "seeds", "limit", "mode", "precision", "shown", "norm_groups")
    settings = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    return {"pairs_key": shards.read_manifest(config.pairs, "pairs").key, "weights_sha256": sha256, **settings}


def finished_report(config: EvaluateConfig, evaluated: Mapping[str, Any]) -> Report | None:
    """The report that is there already, if it is of the same evaluation."""
    url = storage.join(config.output, "report.json")
    document = json.loads(storage.read_bytes(url)) if storage.exists(url) else {}
    if document.get("evaluated") != evaluated:
        return None
    return Report(title="Already evaluated", rows=document["rows"], facts={"report": url})


def evaluate(config: EvaluateConfig) -> Report:
    """Measures every method on every image and writes report.json, images.csv and before_after.png.

    Raises:
        ValueError: if the pairs, the split or some weights cannot be used.
    """
    images, methods, shown = find_images(config), methods_of(config), shown_methods(config)
    evaluated = fingerprint(config, methods)
    if report := finished_report(config, evaluated):
        return report
    for method in methods[2:]:
        load_unet(method.url, config.norm_groups).schedule.grid(method.steps)
    storage.check_writable(config.output)
    gpu = runs.use_gpu(config.compute)
    judged = ray.data.range(len(images), override_num_blocks=len(images)).map_batches(
        Judge,
        fn_constructor_args=(config, images, "cuda" if gpu else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=config.compute.workers),
        num_gpus=1 if gpu else None,
        num_cpus=None if gpu else config.compute.cpus_per_worker,
    )
    with runs.tracked_run(config.tracking, config.output, config, job="evaluate") as run:
        results = sorted(judged.iter_rows(), key=lambda row: int(row["index"]))
        rows = [dict(row) for result in results for row in result["rows"]]
        picture = before_after(shown, [list(result["shown"]) for result in results if len(result["shown"])])
        storage.write_bytes(storage.join(config.output, "before_after.png"), encode_png(picture))
        storage.write_bytes(storage.join(config.output, "images.csv"), as_csv(rows))
        report = summarize(config, methods, rows, evaluated)
        writer = RunWriter(run)
        for row in report.rows:
            values = {name: value for name, value in row.items() if isinstance(value, float)}
            writer.metrics(
                {f"evaluation/{row['method']}/{name}": value for name, value in values.items()}, row["steps"]
            )
        writer.image("evaluation/before_after", picture, 0)
        writer.close()
    reporting.save(report)
    return report


def summarize(
    config: EvaluateConfig,
    methods: Iterable[Method],
    rows: Sequence[Mapping[str, Any]],
    evaluated: Mapping[str, Any],
) -> Report:
    """Means over images and seeds, with a bootstrap interval of the mean raw PSNR over images."""
    means: list[reporting.Row] = []
    for method in methods:
        mine = [row for row in rows if (row["method"], row["steps"]) == (method.name, method.steps)]
        names = [name for name in mine[0] if name not in ("pair_id", "method", "steps", "seed")]
        low, high = bootstrap([row["psnr"] for row in mine])
        values = {name: float(np.mean([row[name] for row in mine])) for name in names}
        means.append({"method": method.name, "steps": method.steps, **values, "psnr_95": f"{low:.2f} to {high:.2f}"})
    facts = {
        "images": len({row["pair_id"] for row in rows}),
        "split": config.split,
        "seeds": list(config.seeds),
        "protocol": PROTOCOL,
        "before_after": storage.join(config.output, "before_after.png"),
        "evaluated": evaluated,
    }
    return Report(title="Evaluation", rows=means, facts=facts, url=config.output)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled images (seeded)."""
    sample = np.random.default_rng(0).choice(values, size=(BOOTSTRAP_DRAWS, len(values)))
    low, high = np.percentile(sample.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def plan_evaluate(config: EvaluateConfig) -> Report:
    """How many images would be judged by which methods."""
    images = find_images(config)
    rows = [{"method": method.name, "steps": method.steps, "weights": method.url} for method in methods_of(config)]
    return Report(title=f"Plan of evaluate: {len(images)} images, seeds {config.seeds}", rows=rows)
