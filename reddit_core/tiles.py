"""Enhancement of photographs of any size in bounded memory: overlapping tiles that agree with each other.

The noise is drawn for the whole image, each step is blended before the next one starts, and all tiles
share the statistics of the whole image (`shared_statistics.py`), so that the result is that of the untiled
sampler but for what lies beyond a tile's overlap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from reddit_core import sampler
from reddit_core.networks.sr3_unet import UNet
from reddit_core.sampler import DdimMode, sample_step, seeded_noise
from reddit_core.schedule import NoiseSchedule
from reddit_core.shared_statistics import Core, SharedNetwork

# Side of the sample's patches; the more of them, the better they stand for the image.
PATCH = 64
# Surveys end when no group's statistics moved by more than this, and at the latest after so many.
SETTLED = 0.04
MAX_SURVEYS = 4
# Tiles that a survey looks at, spread evenly; more would cost time and hardly move the statistics.
MAX_SURVEYED = 16

Pixels = NDArray[np.unsignedinteger[Any]]


class Span(NamedTuple):
    """One axis of a tile: pixels [start, stop), of which [core_start, core_stop) belong to no other tile."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def plan_spans(size: int, tile: int, overlap: int, multiple: int) -> list[Span]:
    """Splits an axis into the fewest equal spans of about `tile` pixels that overlap by at least `overlap`.

    Args:
        size: pixels of the axis, a multiple of `multiple`.
        tile: longest span, before it is rounded up to a multiple.
        overlap: at most a quarter of `tile`.
        multiple: every start, stop and core boundary is one.
    """
    if size <= tile:
        return [Span(0, size, 0, size)]
    count = math.ceil((size - overlap) / (tile - overlap))
    length = math.ceil((size + (count - 1) * (overlap + multiple)) / count / multiple) * multiple
    starts = [i * (size - length) // (count - 1) // multiple * multiple for i in range(count)]
    middles = [(later + earlier + length) // 2 // multiple * multiple for earlier, later in pairwise(starts)]
    bounds = [0, *middles, size]
    return [Span(start, start + length, *core) for start, core in zip(starts, pairwise(bounds), strict=True)]


def blend_weights(spans: list[Span]) -> list[Float[Tensor, " length"]]:
    """One weight per pixel of each span; at every position of the axis they add up to 1.

    Over an overlap the weight moves from one span to the next along a smooth step in its middle half; the
    outer quarters, which see the least of their surroundings, get nothing.
    """
    total = torch.zeros(spans[-1].stop)
    weights = [torch.ones(span.stop - span.start) for span in spans]
    for i, (earlier, later) in enumerate(pairwise(spans)):
        width = earlier.stop - later.start
        position = ((torch.arange(width) + 0.5) / width * 2 - 0.5).clamp(0, 1)
        rising = position.square() * (3 - 2 * position)
        weights[i][len(weights[i]) - width :] *= 1 - rising
        weights[i + 1][:width] *= rising
    for span, weight in zip(spans, weights, strict=True):
        total[span.start : span.stop] += weight
    return [weight / total[span.start : span.stop] for span, weight in zip(spans, weights, strict=True)]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image and the weight of each of its pixels."""

    rows: Span
    columns: Span
    weight: Float[Tensor, "h w"]

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def core(self) -> Core:
        (top, _, *rows), (left, _, *columns) = self.rows, self.columns
        return Core(rows[0] - top, rows[1] - top, columns[0] - left, columns[1] - left)


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int) -> list[Tile]:
    """The tiles of an image, row by row."""
    rows, columns = (plan_spans(size, tile, overlap, multiple) for size in (height, width))
    down, across = blend_weights(rows), blend_weights(columns)
    return [
        Tile(row, column, vertical[:, None] * horizontal)
        for row, vertical in zip(rows, down, strict=True)
        for column, horizontal in zip(columns, across, strict=True)
    ]


def sample_boxes(height: int, width: int, num_pixels: int, multiple: int) -> list[tuple[slice, slice]]:
    """Patches that stand for the image: a regular lattice of as many as `num_pixels` hold, centred in their cells."""
    side = math.ceil(PATCH / multiple) * multiple
    tall, wide = min(side, height), min(side, width)
    count = max(1, num_pixels // (tall * wide))
    num_rows = max(1, min(height // tall, round(math.sqrt(count * height / width * wide / tall))))
    num_columns = max(1, min(width // wide, count // num_rows))
    tops, lefts = (
        [int((i + 0.5) * size / number - length / 2) // multiple * multiple for i in range(number)]
        for size, number, length in ((height, num_rows, tall), (width, num_columns, wide))
    )
    return [(slice(top, top + tall), slice(left, left + wide)) for top in tops for left in lefts]


@dataclass
class TiledSampler:
    """DDIM on one large photograph, tile by tile."""

    unet: UNet
    pixels: Pixels
    schedule: NoiseSchedule
    mode: DdimMode
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        multiple = self.unet.config.size_multiple
        self.device = next(self.unet.parameters()).device
        self.height, self.width = self.pixels.shape[:2]
        self.padded = _pad(self.pixels, multiple)
        height, width = self.padded.shape[:2]
        self.tiles = plan_tiles(height, width, self.tile, self.overlap, multiple)
        self.patches = sample_boxes(height, width, self.tile**2, multiple)
        self.network = SharedNetwork(self.unet)

    def low(self, boxes: list[tuple[slice, slice]]) -> Float[Tensor, "b 3 h w"]:
        return torch.cat([to_signed(self.padded[box], self.device) for box in boxes])

    def run(self, num_steps: int, seed: int) -> Pixels:
        """All steps; what is returned is like the pixels that came in."""
        grid = self.schedule.grid(num_steps)
        z = seeded_noise((1, 3, *self.padded.shape[:2]), seed).to(self.device)
        for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
            z = self.step(z, t, s)
        result = np.empty_like(self.padded)
        for tile in self.tiles:
            result[tile.box] = to_pixels(z[..., *tile.box], self.padded.dtype)
        return result[: self.height, : self.width]

    def step(self, z: Float[Tensor, "1 3 h w"], t: int, s: int) -> Float[Tensor, "1 3 h w"]:
        """One step of the whole image."""
        self.settle(z, t, s)
        unet, blended = self.network.applying(), torch.zeros_like(z)
        for tile in self.tiles:
            stepped = sample_step(unet, self.low([tile.box]), z[..., *tile.box], self.schedule, t, s, self.mode)
            blended[..., *tile.box] += (stepped * tile.weight.to(self.device)).float()
        return blended

    def settle(self, z: Float[Tensor, "1 3 h w"], t: int, s: int) -> None:
        """Finds the statistics of the whole image at this step."""
        self.network.forget()
        low, noisy = self.low(self.patches), torch.cat([z[..., *box] for box in self.patches])
        chosen = [self.tiles[int(i)] for i in spread(len(self.tiles), MAX_SURVEYED)]
        sample_step(self.network.sampling(), low, noisy, self.schedule, t, s, self.mode)
        for _ in range(MAX_SURVEYS):
            for tile in chosen:
                unet = self.network.surveying(len(chosen), tile.rows.stop - tile.rows.start, tile.core)
                sample_step(unet, self.low([tile.box]), z[..., *tile.box], self.schedule, t, s, self.mode)
            self.network.learn()
            sample_step(self.network.sampling(), low, noisy, self.schedule, t, s, self.mode)
            if self.network.change < SETTLED:
                return


def spread(count: int, most: int) -> Iterator[int]:
    """Evenly spread numbers below `count`, at most `most` of them."""
    chosen = min(count, most)
    return ((2 * i + 1) * count // (2 * chosen) for i in range(chosen))


@torch.no_grad()
def enhance_pixels(
    unet: UNet,
    pixels: Pixels,
    schedule: NoiseSchedule,
    num_steps: int,
    seed: int,
    tile: int = 1024,
    overlap: int = 64,
    mode: DdimMode = "exact",
) -> Pixels:
    """Enhances a photograph of any size; one of up to `tile` x `tile` pixels in one piece.

    Beside the photograph and its result, memory holds two float32 images and what the network needs for one
    tile.

    Args:
        unet: on the device that does the work.
        pixels: [H, W, 3] RGB, uint8 or uint16.
        schedule: of the weights.
        num_steps: DDIM steps; must divide the schedule.
        seed: of the noise; the same seed gives the same bytes on the same machine.
        tile: side of the tiles in pixels.
        overlap: pixels over which neighbouring tiles are blended, at most a quarter of `tile`.
        mode: the sampler.

    Returns:
        [H, W, 3] of the same type.

    Raises:
        ValueError: if `num_steps` does not divide the schedule, the overlap is too wide, or the result is not finite.
    """
    if not 0 <= overlap <= tile // 4:
        raise ValueError(f"overlap is {overlap}, but must be between 0 and a quarter of the tile's {tile}; 64 is usual")
    if pixels.shape[0] * pixels.shape[1] > tile * tile:
        return TiledSampler(unet, pixels, schedule, mode, tile, overlap).run(num_steps, seed)
    low = to_signed(pixels, next(unet.parameters()).device)
    return to_pixels(sampler.enhance(unet, low, schedule, num_steps, seed, mode), pixels.dtype)


def to_signed(pixels: Pixels, device: torch.device) -> Float[Tensor, "1 3 h w"]:
    """[H, W, 3] unsigned integers of full range as [-1, 1]."""
    half_range = np.iinfo(pixels.dtype).max / 2
    # Through int32 and a copy: torch cannot subtract from uint16, and must never write to what it is given.
    image = torch.tensor(pixels.astype(np.int32), device=device).permute(2, 0, 1)[None]
    return image.float() / half_range - 1


def to_pixels(image: Float[Tensor, "1 3 h w"], dtype: np.dtype[np.unsignedinteger[Any]]) -> Pixels:
    """[-1, 1] as rounded unsigned integers of full range; values that are not finite are refused."""
    if not image.isfinite().all():
        raise ValueError("the network's result holds values that are not finite; use fp32, or other weights")
    half_range = np.iinfo(dtype).max / 2
    scaled = ((image[0].double().clamp(-1, 1) + 1) * half_range).round().to(torch.int32)
    return scaled.permute(1, 2, 0).cpu().numpy().astype(dtype)


def _pad(pixels: Pixels, multiple: int) -> Pixels:
    """As `sampler.pad_to_multiple`, on pixels."""
    height, width = pixels.shape[:2]
    bottom, right = -height % multiple, -width % multiple
    margins = ((0, bottom), (0, right), (0, 0))
    fits = bottom < height and right < width
    return np.pad(pixels, margins, mode="reflect") if fits else np.pad(pixels, margins, mode="edge")
