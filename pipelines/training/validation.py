"""Validation during training: the first worker enhances some validation images with the few-step sampler."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pipelines import shards
from pipelines.config.parts import CheckpointConfig
from pipelines.pairs.dataset import decode_pair, split_shards
from pipelines.weights import load_lpips
from reddit_core.lpips import Lpips
from reddit_core.metrics import UNDEFINED_FOR_SOME, quality, quality_given
from reddit_core.pixels import (
    pixels_from_unit,
    rounded_to_8_bits,
    signed_from_pixels,
    signed_from_unit,
    unit_from_pixels,
    unit_from_signed,
)
from reddit_core.student import Student, result_brightness
from reddit_core.tone import tone_gain
from reddit_core.weights import NetworkFile

GRID_IMAGES = 4
# Name of the perceptual distance, which is among the metrics only if a backbone is given.
LPIPS = "lpips"
SEED = 0


class ValidationPair(NamedTuple):
    """Crops of a pair, [H, W, 3] uint8, and the mean luma of its whole images, in [0, 1]."""

    low: NDArray[np.uint8]
    normal: NDArray[np.uint8]
    low_curve: float
    normal_luma: float


@dataclass
class ValidationImages:
    """Images of the validation split, cropped around their centre; loaded when first needed.

    They are spread evenly over the split's first shard, and all come from it: images of later shards are not used. So
    the images of a dataset stay the same when pairs are added, and reading them takes one shard.

    Attributes:
        pairs: URL of the pair dataset.
        config: how many images (`validation_images`) and how large (`validation_crop`, 0 for whole images).
        lpips: URLs of the files of the perceptual distance, or empty.
    """

    pairs: str
    config: CheckpointConfig
    lpips: tuple[str, ...] = ()

    @property
    def has_images(self) -> bool:
        return any(entry.split == "validation" for entry in shards.read_manifest(self.pairs, "pairs").shards)

    def check(self) -> None:
        """Raises a ValueError if the pairs have no validation split, or the backbone cannot be used."""
        if self.config.validate_every and not self.has_images:
            raise ValueError(
                f"{self.pairs} has no validation split to validate on; add --checkpoint.validate-every 0, or ingest "
                "again with a --validation-share"
            )
        if self.lpips:
            load_lpips(*self.lpips)

    @cached_property
    def distance(self) -> Lpips | None:
        return load_lpips(*self.lpips) if self.lpips else None

    @cached_property
    def images(self) -> Sequence[ValidationPair]:
        """The pairs that are looked at."""
        manifest = shards.read_manifest(self.pairs, "pairs")
        table = shards.read_shard(self.pairs, split_shards(manifest, "validation")[0])
        rows = np.unique(np.linspace(0, table.num_rows - 1, self.config.validation_images).astype(int))
        pairs = [table.slice(int(row), 1).to_pylist()[0] for row in rows]
        return [self.cropped(pair) for pair in pairs]

    def cropped(self, row: Mapping[str, Any]) -> ValidationPair:
        """A row of a pair shard, its images decoded and cropped."""
        low, normal = decode_pair(row)
        return ValidationPair(self.crop(low), self.crop(normal), row["low_curve"], row["normal_luma"])

    def crop(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        side = self.config.validation_crop
        if not side:
            return image
        y, x = (max(0, (length - side) // 2) for length in image.shape[:2])
        return image[y : y + side, x : x + side]

    def judge(self, file: NetworkFile, num_steps: int) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Mean quality over the images, and a grid with a row of low | enhanced | normal for each of the first four.

        Networks that are told the exposure gain get that of their own brightness, and for the `_given` metrics that of
        the ground truth. The grid is [rows x H, 3 x W, 3] uint8, and None if the images differ in size.
        """
        device = next(file.network.parameters()).device
        student = Student(file, device=device, steps=num_steps)
        results, rows = [], []
        for pair in self.images:
            enhanced_unit = self.enhance(student, pair, result_brightness(file))
            normal_unit = unit_from_pixels(pair.normal[None], device)
            values = quality(enhanced_unit, normal_unit)
            if file.network.config.takes_gain:
                values |= quality_given(self.enhance(student, pair, pair.normal_luma), normal_unit)
            result = {name: float(value) for name, value in values.items()}
            if self.distance:
                distance = self.distance.to(device)
                result[LPIPS] = float(distance(signed_from_unit(enhanced_unit), signed_from_unit(normal_unit)))
            results.append(result)
            picture = pixels_from_unit(enhanced_unit)[0]
            rows.append(np.concatenate([pair.low, picture, pair.normal], axis=1))
        means = {name: mean_metric(name, [result[name] for result in results]) for name in results[0]}
        same_size = all(row.shape == rows[0].shape for row in rows)
        return means, np.concatenate(rows[:GRID_IMAGES]) if same_size else None

    def enhance(self, student: Student, pair: ValidationPair, brightness: float | None) -> Float[Tensor, "1 3 h w"]:
        """A crop's result in [0, 1], rounded to 8 bits, at a brightness of the whole image.

        Only whole images are matched to that brightness, and to the contrast that is predicted for them.
        """
        if not self.config.validation_crop:
            return rounded_to_8_bits(student.enhance_unit(pair.low, seed=SEED, brightness=brightness))
        low = signed_from_pixels(pair.low[None], student.device)
        gain = 1.0 if brightness is None else tone_gain(brightness, pair.low_curve)
        enhanced = student.enhance_images(low, seed=SEED, gain=torch.tensor([gain], device=student.device))
        return rounded_to_8_bits(unit_from_signed(enhanced))


def mean_metric(name: str, values: Sequence[float]) -> float:
    """The mean over images. Those that a metric does not exist for are left out; it is NaN if all of them are."""
    known = [value for value in values if not (name in UNDEFINED_FOR_SOME and math.isnan(value))]
    return float(np.mean(known)) if known else math.nan
