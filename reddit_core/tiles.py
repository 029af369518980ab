"""Enhancement of photographs of any size in bounded memory: overlapping tiles that agree with each other.

The noise is drawn for the whole image, each step is blended before the next one starts, and all tiles
share the statistics of the whole image (`shared_statistics.py`), so the result equals that of the untiled
sampler except for influences from beyond a tile's overlap.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from reddit_core.brightness import BAND_ROWS, scale_and_shift
from reddit_core.networks import Network
from reddit_core.pixels import Pixels, pixels_from_signed, signed_from_pixels, signed_from_unit
from reddit_core.sampler import DdimMode, sample_step, seeded_noise
from reddit_core.schedule import NoiseSchedule
from reddit_core.shared_statistics import SharedNetwork
from reddit_core.tone import Tone, solve_tone

# Side of the sample's patches, and the pixels along their borders that do not count. The network sees less context
# there; more patches stand better for the image.
PATCH, MARGIN = 96, 16
# Pixels of the sample: this share of the image, not fewer than so many, and not many more than a tile's.
SAMPLE_SHARE = 1 / 16
LEAST_SAMPLE = 2**19


class Span(NamedTuple):
    """One axis of a tile: pixels [start, stop)."""

    start: int
    stop: int


def plan_spans(size: int, tile: int, overlap: int, multiple: int) -> list[Span]:
    """Splits an axis into the fewest equal spans of about `tile` pixels that overlap by at least `overlap`.

    Args:
        size: pixels of the axis, a multiple of `multiple`.
        tile: longest span, before it is rounded up to a multiple.
        overlap: at most a quarter of `tile`.
        multiple: every start and stop is one.
    """
    if size <= tile:
        return [Span(0, size)]
    count = math.ceil((size - overlap) / (tile - overlap))
    length = math.ceil((size + (count - 1) * (overlap + multiple)) / count / multiple) * multiple
    starts = [i * (size - length) // (count - 1) // multiple * multiple for i in range(count)]
    return [Span(start, start + length) for start in starts]


def blend_weights(spans: list[Span]) -> list[Float[Tensor, " length"]]:
    """One weight per pixel of each span; at every position of the axis they add up to 1.

    Across an overlap the weight moves from one span to the next in a smooth step over the middle half; the outer
    quarters, with the least context, have weight 0.
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
    """Patches that stand for the image: a regular lattice of as many as `num_pixels` hold, centred in their cells.

    An image of no more pixels is its own only patch.
    """
    if height * width <= num_pixels:
        return [(slice(0, height), slice(0, width))]
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
    """DDIM on one large photograph, tile by tile.

    Memory holds the photograph, its result, two float32 images, and what the network needs for one tile, or for the
    sample where that is larger.

    Attributes:
        shared: the copy of the network with shared statistics, on the device that does the work.
        pixels: [H, W, 3] RGB, uint8 or uint16.
        schedule: of the weights.
        mode: the sampler.
        tile: side of the tiles in pixels.
        overlap: pixels over which neighbouring tiles are blended, at most a quarter of `tile`.
        tone: gain of the whole photograph, and what the result shall have, on the network's device; None leaves both to
            the network.
    """

    shared: SharedNetwork
    pixels: Pixels
    schedule: NoiseSchedule
    mode: DdimMode
    tile: int
    overlap: int
    tone: Tone | None = None

    def __post_init__(self) -> None:
        multiple = self.shared.network.config.size_multiple
        self.device = next(self.shared.network.parameters()).device
        self.height, self.width = self.pixels.shape[:2]
        self.padded = _pad(self.pixels, multiple)
        height, width = self.padded.shape[:2]
        self.tiles = plan_tiles(height, width, self.tile, self.overlap, multiple)
        num_sampled = max(LEAST_SAMPLE, min(int(height * width * SAMPLE_SHARE), self.tile**2))
        self.patches = sample_boxes(height, width, num_sampled, multiple)

    def low(self, boxes: list[tuple[slice, slice]]) -> Float[Tensor, "b 3 h w"]:
        return torch.cat([signed_from_pixels(self.padded[box], self.device) for box in boxes])

    def gains(self, low: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"] | None:
        return None if self.tone is None else self.tone.gain.expand(len(low))

    def run(self, num_steps: int, seed: int) -> Pixels:
        """All steps; returns pixels of the size and type of the input.

        Raises:
            ValueError: if `num_steps` does not divide the schedule, or the result is not finite.
        """
        grid = self.schedule.grid(num_steps)
        z = seeded_noise((1, 3, *self.padded.shape[:2]), seed).to(self.device)
        for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
            z = self.step(z, t, s)
        return self.finish(z[..., : self.height, : self.width])

    def finish(self, z: Float[Tensor, "1 3 h w"]) -> Pixels:
        """The result in [-1, 1] as pixels of the tone that is asked for, in bands; `z` is overwritten."""
        factors = None
        if self.tone is not None:
            z.add_(1).div_(2).clamp_(0, 1)  # as `match_tone` does, in place
            factors = solve_tone(z, self.tone)
        result = np.empty_like(self.pixels)
        for start in range(0, self.height, BAND_ROWS):
            band = z[..., start : start + BAND_ROWS, :]
            if factors is not None:
                band = signed_from_unit(scale_and_shift(band, *factors))
            result[start : start + BAND_ROWS] = pixels_from_signed(band, result.dtype)[0]
        return result

    def step(self, z: Float[Tensor, "1 3 h w"], t: int, s: int) -> Float[Tensor, "1 3 h w"]:
        """One step of the whole image."""
        self.sample_patches(z, t, s)
        blended = torch.zeros_like(z)
        with self.shared.apply() as network:
            for tile in self.tiles:
                stepped = self.step_tile(network, tile, z, t, s)
                blended[..., *tile.box] += (stepped * tile.weight.to(self.device)).float()
        return blended

    def sample_patches(self, z: Float[Tensor, "1 3 h w"], t: int, s: int) -> None:
        """Finds the statistics of the whole image at this step."""
        noisy, low = torch.cat([z[..., *box] for box in self.patches]), self.low(self.patches)
        height, width = noisy.shape[-2:]
        margins = (MARGIN if height < z.shape[-2] else 0, MARGIN if width < z.shape[-1] else 0)
        with self.shared.sample(height, margins) as network:
            sample_step(network, noisy, self.schedule, t, s, self.mode, low=low, gain=self.gains(low))

    def step_tile(
        self, network: Network, tile: Tile, z: Float[Tensor, "1 3 h w"], t: int, s: int
    ) -> Float64[Tensor, "1 3 h2 w2"]:
        low = self.low([tile.box])
        return sample_step(network, z[..., *tile.box], self.schedule, t, s, self.mode, low=low, gain=self.gains(low))


def _pad(pixels: Pixels, multiple: int) -> Pixels:
    """As `sampler.pad_to_multiple`, on pixels."""
    height, width = pixels.shape[:2]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return pixels
    margins = ((0, bottom), (0, right), (0, 0))
    fits = bottom < height and right < width
    return np.pad(pixels, margins, mode="reflect") if fits else np.pad(pixels, margins, mode="edge")
