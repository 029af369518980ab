"""The actor that runs every method on images of a split and measures quality, time and memory."""

import base64
import ctypes
import io
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from kornia.enhance import equalize_clahe
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipelines import storage
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.before_after import shrink
from pipelines.evaluation.methods import CLAHE, INPUT, TRUTH, Method, methods_of, shown_methods
from pipelines.images import encode_png, reduced
from pipelines.pairs.dataset import decode_pair
from pipelines.shards import ShardEntry
from pipelines.threads import torch_threads
from pipelines.trajectories.crops import cached_shard
from pipelines.weights import load_distances, load_student
from reddit_core.brightness import LEAST_LUMA, luma_moments_of_pixels
from reddit_core.metrics import GIVEN, match_mean, quality, quality_given
from reddit_core.pixels import (
    SSIM_WINDOW,
    pixels_from_unit,
    rounded_to_8_bits,
    signed_from_pixels,
    signed_from_unit,
    unit_from_pixels,
    unit_from_signed,
)

CLAHE_CLIP, CLAHE_GRID = 40.0, (8, 8)
# Equal images have an infinite PSNR, which no mean survives.
MOST_PSNR = 100.0
SHOWN_IMAGES = 4
PICTURE_SIDE, PICTURE_QUALITY = 640, 90
WARM_UP_SIDE = 64
PROTOCOL = "; ".join(
    (
        "whole images in RGB, mirrored at the right and bottom to the network's multiple and cut back afterwards",
        "large images in tiles that share their statistics, as the enhance job takes them",
        "results rounded to 8 bits before anything is measured",
        f"PSNR over all channels with data range 1, at most {MOST_PSNR:.0f} dB",
        "SSIM with an 11x11 Gaussian window of sigma 1.5, valid windows only, mean over RGB",
        "gt_mean scales the result to the ground truth's mean luma first, so it uses the ground truth",
        "moments gives the result the ground truth's mean and deviation of luma first, to show how much of an error is "
        "these two numbers",
        "given tells networks that take a brightness that of the ground truth",
        "sharpness is the Laplacian energy of the luma over the ground truth's (1 is right), and counts only images "
        "whose ground truth is not flat",
        f"images below {SSIM_WINDOW} pixels a side have no SSIM, very small or very large ones no LPIPS, and black "
        "ground truths no gt_mean and no moments; means leave these images out",
        "LPIPS on [-1, 1], called uniform where the file has no learned channel weights, whose figures are not those "
        "of publications",
        f"clahe is kornia's equalize_clahe with OpenCV's default clip limit {CLAHE_CLIP:.0f} on "
        f"{CLAHE_GRID[0]}x{CLAHE_GRID[1]} tiles of each channel, or fewer where an image has fewer pixels",
        "seconds are of the method's call alone, one image at a time, after a warm-up",
        "memory is of another such call, one for each size of image",
    )
)
PROC = Path("/proc/self")


@dataclass(frozen=True)
class ImageRef:
    """An image of the split: its shard, and its row there."""

    entry: ShardEntry
    row: int


def part_url(parts: str, index: int) -> str:
    """URL of the part with the results of the image `index`."""
    return storage.join(parts, f"{index:06d}.json")


class Judge:
    """An actor that runs every method on images and measures the results; networks are loaded once.

    The results of an image are a part: `{"rows": [...], "pictures": {method: JPEG}, "shown": [PNG, ...]}`, pictures as
    base64.

    Args:
        config: config of the evaluation.
        images: all its images.
        parts: URL of the folder of parts.
        device: torch device.
    """

    def __init__(self, config: EvaluateConfig, images: Sequence[ImageRef], parts: str, device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.config, self.images, self.parts, self.device = config, images, parts, torch.device(device)
        self.methods, self.shown = methods_of(config), shown_methods(config)
        urls = {method.url for method in self.methods if method.url}
        self.students = {url: load_student(url, device, config.precision) for url in urls}
        self.distances = {name: lpips.to(self.device) for name, lpips in load_distances(config.lpips).items()}
        for method in self.methods:
            self.compute(method, np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8), seed=0)
        self.memory = MemoryGauge(self.device)
        self.peak_mb: dict[tuple[Method, tuple[int, ...]], float | None] = {}

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, list[int]]:
        index = int(batch["id"][0])
        part = self.judge(self.images[index], lossless=index < SHOWN_IMAGES)
        storage.write_bytes(part_url(self.parts, index), json.dumps(part).encode())
        return {"index": [index]}

    def judge(self, image: ImageRef, *, lossless: bool) -> dict[str, Any]:
        """The part of an image, with pictures for `before_after.png` if `lossless`."""
        pair = cached_shard(self.config.pairs, image.entry).slice(image.row, 1).to_pylist()[0]
        low, normal = decode_pair(pair)
        rows: list[dict[str, Any]] = []
        pictures = {TRUTH: normal}
        for method in self.methods:
            for seed in self.config.seeds if method.url else self.config.seeds[:1]:
                estimate, cost = self.run(method, low, seed, pair["pair_id"])
                head = {"pair_id": pair["pair_id"], "method": method.name, "steps": method.steps, "seed": seed}
                given = self.measure_given(method, low, normal, seed)
                rows.append({**head, **self.measure(estimate, normal), **given, **cost})
                pictures.setdefault(method.key, estimate)
        shown = [encode_png(shrink(pictures[key])) for key in (*(method.key for method in self.shown), TRUTH)]
        return {
            "rows": rows,
            "pictures": {key: as_text(encode_jpeg(picture)) for key, picture in pictures.items()},
            "shown": [as_text(data) for data in shown] if lossless else [],
        }

    def run(
        self, method: Method, low: NDArray[np.uint8], seed: int, pair_id: str
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A method's result, [H, W, 3] uint8, and the seconds and megabytes per megapixel that its call took.

        Raises:
            ValueError: if the result is not finite.
        """
        megapixels = low.shape[0] * low.shape[1] / 1e6
        megabytes = self.peak_of(method, low, seed)
        self.synchronize()
        started = time.perf_counter()
        unit = self.compute(method, low, seed)
        self.synchronize()
        seconds = time.perf_counter() - started
        if not unit.isfinite().all():
            raise ValueError(
                f"the result of {method.key} for {pair_id} holds values that are not finite; use --precision fp32, or "
                "other weights"
            )
        result = pixels_from_unit(unit)[0]
        cost = {
            "seconds_per_megapixel": seconds / megapixels if method.name != INPUT else 0.0,
            "peak_mb_per_megapixel": None if megabytes is None else megabytes / megapixels,
        }
        return result, cost

    def synchronize(self) -> None:
        """Blocks until queued CUDA work has finished; no-op on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_of(self, method: Method, low: NDArray[np.uint8], seed: int) -> float | None:
        """Peak memory of a call in MB, measured in an extra call, once for each method and shape."""
        key = (method, low.shape)
        if key not in self.peak_mb:
            self.memory.start()
            self.compute(method, low, seed)
            self.peak_mb[key] = self.memory.peak_mb()
        return self.peak_mb[key]

    @torch.no_grad()
    def compute(self, method: Method, low: NDArray[np.uint8], seed: int, **tone: Any) -> torch.Tensor:
        """The method's result in [0, 1], [1, 3, H, W]; at the network's own tone by default."""
        if method.name == INPUT:
            return unit_from_pixels(low[None], self.device)
        if method.name == CLAHE:
            return equalized(unit_from_signed(signed_from_pixels(low[None], self.device)))
        student = self.students[method.url]
        return student.enhance_unit(low, seed=seed, steps=method.steps, mode=self.config.mode, **tone)

    @torch.no_grad()
    def measure(self, estimate: NDArray[np.uint8], normal: NDArray[np.uint8]) -> dict[str, float | None]:
        """Every metric of a result, both [H, W, 3] uint8; None where undefined, as sharpness of a flat ground truth."""
        estimate_unit, normal_unit = (
            unit_from_signed(signed_from_pixels(pixels[None], self.device)) for pixels in (estimate, normal)
        )
        metrics = {name: float(value) for name, value in quality(estimate_unit, normal_unit).items()}
        for name in ("psnr", "psnr_gt_mean", "psnr_moments"):
            metrics[name] = min(metrics[name], MOST_PSNR)
        matched = match_mean(estimate_unit, normal_unit)
        for name, distance in self.distances.items():
            metrics[name] = float(distance(signed_from_unit(estimate_unit), signed_from_unit(normal_unit)))
            metrics[f"{name}_gt_mean"] = float(distance(signed_from_unit(matched), signed_from_unit(normal_unit)))
        return {name: None if math.isnan(value) else value for name, value in metrics.items()}

    @torch.no_grad()
    def measure_given(
        self, method: Method, low: NDArray[np.uint8], normal: NDArray[np.uint8], seed: int
    ) -> dict[str, float | None]:
        """The `_given` figures, of a result that was told the ground truth's brightness and contrast; None where the
        network takes none."""
        if not method.url or not self.students[method.url].network.config.takes_gain:
            return dict.fromkeys(GIVEN)
        brightness, contrast = luma_moments_of_pixels(normal)
        # A flat ground truth has no brightness or contrast that could be asked for.
        asked = {
            "brightness": min(max(brightness, LEAST_LUMA), 1 - LEAST_LUMA),
            "contrast": max(contrast, LEAST_LUMA),
        }
        result = rounded_to_8_bits(self.compute(method, low, seed, **asked))
        figures = quality_given(result, unit_from_signed(signed_from_pixels(normal[None], self.device)))
        values = {name: float(value) for name, value in figures.items()}
        values["psnr_given"] = min(values["psnr_given"], MOST_PSNR)
        return {name: None if math.isnan(value) else value for name, value in values.items()}


def equalized(unit: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
    """CLAHE of each channel in turn, which takes a third of the memory; kornia wants more pixels a side than tiles."""
    height, width = unit.shape[-2:]
    unit = functional.pad(unit, (0, int(width == 1), 0, int(height == 1)), mode="replicate")
    rows, columns = (min(most, side - 1) for most, side in zip(CLAHE_GRID, unit.shape[-2:], strict=True))
    channels = [equalize_clahe(channel, CLAHE_CLIP, (rows, columns)) for channel in torch.split(unit, 1, dim=1)]
    return torch.cat(channels, dim=1)[..., :height, :width]


class MemoryGauge:
    """Peak memory of a call in MB, above what was in use when it started; None where it cannot be measured.

    On a GPU it comes from torch's allocator, else it is the process's `VmHWM` of Linux, which writing 5 to `clear_refs`
    resets. Before that glibc returns freed memory to the system, or the call could reuse it without raising the peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        self.available = True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            trim_heap()
            try:
                (PROC / "clear_refs").write_text("5")
            except OSError:  # no Linux, or a container that forbids it
                self.available = False
        self.at_rest = self._peak()

    def peak_mb(self) -> float | None:
        peak = self._peak()
        return None if peak is None or self.at_rest is None else max(0.0, peak - self.at_rest)

    def _peak(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if not self.available:
            return None
        lines = (PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def trim_heap() -> None:
    """Makes glibc return freed memory to the system; no-op without glibc."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """A JPEG for the report, with at most `PICTURE_SIDE` pixels a side and no chroma subsampling."""
    sink = io.BytesIO()
    Image.fromarray(reduced(image, PICTURE_SIDE)).save(sink, format="JPEG", quality=PICTURE_QUALITY, subsampling=0)
    return sink.getvalue()


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
