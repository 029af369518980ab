"""A student ready to use: its weights on a device, in a precision, with the number of steps it was distilled for."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from reddit_core import sampler
from reddit_core.pixels import Pixels, pixels_from_signed, signed_from_pixels, unit_from_pixels, unit_from_signed
from reddit_core.precision import Precision, autocast, lay_out_for_inference
from reddit_core.sampler import DdimMode
from reddit_core.shared_statistics import SharedNetwork
from reddit_core.tiles import TiledSampler
from reddit_core.tone import Tone, make_tone, match_tone, thumbnail, thumbnail_of_pixels
from reddit_core.weights import NetworkFile

# Sides of tiles where none is asked for: the largest that the network takes in one piece.
TILES, OVERLAP = (2048, 1024), 64
# Of luma in [0, 1]: half black, half white.
MOST_DEVIATION = 0.5


def sampling_steps(file: NetworkFile, steps: int = 0, source: str = "the weights file") -> int:
    """`steps`, or the number that the weights were distilled for if it is 0.

    Raises:
        ValueError: naming `source`, if neither says a number, or the number does not divide the schedule.
    """
    steps = steps or file.num_steps
    if not steps:
        raise ValueError(f"{source} does not say for how many steps it was distilled; add --steps N, such as 2")
    file.schedule.grid(steps)
    return steps


def result_brightness(file: NetworkFile, brightness: float | None = None) -> float | None:
    """The mean luma that a result shall have: `brightness`, or the weights' own; None leaves it to the network.

    Raises:
        ValueError: if it is out of range, or the network has to be told one and none is known.
    """
    if brightness is None:
        brightness = file.brightness
    if brightness is None:
        if file.network.config.takes_gain:
            raise ValueError("the weights do not say which brightness they were trained on; give one, such as 0.45")
    elif not 0 < brightness < 1:
        raise ValueError(f"brightness is {brightness}, but is a mean luma and must be in (0, 1); 0.45 is usual")
    return brightness


def check_pixels(pixels: Pixels) -> None:
    """Raises ValueError unless these are [H, W, 3], uint8 or uint16."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise ValueError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, but must be RGB, uint8 or uint16 [H, W, 3]; "
            "convert the image first"
        )


def check_tone(file: NetworkFile, brightness: float | None = None, contrast: float | None = None) -> float | None:
    """The brightness of results (`result_brightness`), after a check of the contrast.

    Raises:
        ValueError: as `result_brightness` does, if the contrast is out of range, or one is asked for where the network
            chooses the brightness.
    """
    asked = result_brightness(file, brightness)
    if contrast is None:
        return asked
    if not 0 < contrast <= MOST_DEVIATION:
        raise ValueError(
            f"contrast is {contrast}, but is a standard deviation of luma and must be in (0, {MOST_DEVIATION}]; "
            "0.19 is usual"
        )
    if asked is None:
        raise ValueError(f"contrast is {contrast}, but needs a brightness with these weights; give one, such as 0.45")
    return asked


def result_tone(
    file: NetworkFile, luma: Float64[Tensor, "b n"], brightness: float | None = None, contrast: float | None = None
) -> Tone | None:
    """The tone that results of whole images shall have; None leaves it to the network.

    Args:
        file: the weights, whose own brightness and contrast are taken where nothing is asked for.
        luma: thumbnails of the low-light images (`tone.thumbnail`).
        brightness: mean luma, in (0, 1).
        contrast: standard deviation of luma, in (0, 0.5].

    Raises:
        ValueError: as `check_tone` does.
    """
    asked = check_tone(file, brightness, contrast)
    return None if asked is None else make_tone(luma, asked, contrast, file.contrast)


class Student:
    """Enhances photographs of any size, or batches of images; one call at a time.

    Attributes:
        network: on the device that does the work.
        schedule: of the weights.
        precision: that the network runs in.
    """

    def __init__(
        self, file: NetworkFile, *, device: torch.device | str = "cpu", precision: Precision = "fp32", steps: int = 0
    ) -> None:
        """Moves the file's network to the device.

        Args:
            file: the weights.
            device: where the network runs.
            precision: `fp32`, or `bf16` for autocast.
            steps: DDIM steps where a call does not say; 0 takes the number that the weights were distilled for.
        """
        self.file, self.default_steps, self.precision = file, steps, precision
        self.network, self.schedule = file.network.to(device).eval(), file.schedule
        lay_out_for_inference(self.network, precision)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def tiling(self, tile: int = 0) -> tuple[int, int]:
        """The most pixels that are enhanced in one piece, and the side of the tiles of larger photographs.

        Args:
            tile: the side that is asked for; 0 leaves both to the network (`Network.untiled_pixels`).
        """
        if tile:
            return tile * tile, tile
        most = self.network.untiled_pixels
        return most, next((side for side in TILES if side * side <= most), TILES[-1])

    @cached_property
    def tiled_network(self) -> SharedNetwork:
        """The copy of the network that runs tile by tile."""
        return SharedNetwork(self.network)

    @torch.no_grad()
    def enhance(
        self,
        pixels: Pixels,
        *,
        seed: int = 0,
        steps: int = 0,
        tile: int = 0,
        overlap: int = OVERLAP,
        mode: DdimMode = "exact",
        brightness: float | None = None,
        contrast: float | None = None,
    ) -> Pixels:
        """Enhances a photograph of any size: in one piece if it is small enough, else in overlapping tiles.

        Memory holds the photograph, its result, two float32 images of its size, and what the network needs for one
        tile.

        Args:
            pixels: [H, W, 3] RGB, uint8 or uint16.
            seed: of the noise; the same seed gives the same bytes on the same machine.
            steps: DDIM steps; 0 takes the student's own number.
            tile: side of the tiles in pixels; what has no more than its square is enhanced in one piece. 0 takes one
                piece up to what the network takes in about 4 GB, and tiles beyond (`tiling`).
            overlap: pixels over which neighbouring tiles are blended, at most a quarter of `tile`.
            mode: the sampler.
            brightness: mean luma that the result shall have, in (0, 1). None is the weights' own; of a network that is
                not told the gain, whatever it gives.
            contrast: standard deviation of its luma, in (0, 0.5]. None is what training pairs like this one have.

        Returns:
            [H, W, 3] of the same type.

        Raises:
            ValueError: if the pixels are no RGB photograph, the number of steps is not known or does not divide the
                schedule, brightness or contrast is out of range or needed and not known, the overlap is too wide, or
                the result is not finite.
        """
        check_pixels(pixels)
        most, tile = self.tiling(tile)
        if not 0 <= overlap <= tile // 4:
            raise ValueError(
                f"overlap is {overlap}, but must be between 0 and a quarter of the tile's {tile}; 64 is usual"
            )
        if pixels.shape[0] * pixels.shape[1] <= most:
            return self.enhance_batch(
                [pixels], seed=seed, steps=steps, mode=mode, brightness=brightness, contrast=contrast
            )[0]
        steps = sampling_steps(self.file, steps or self.default_steps)
        tone = result_tone(self.file, thumbnail_of_pixels(pixels).to(self.device), brightness, contrast)
        with autocast(self.device, self.precision):
            tiled = TiledSampler(self.tiled_network, pixels, self.schedule, mode, tile, overlap, tone)
            return tiled.run(steps, seed)

    @torch.no_grad()
    def enhance_batch(
        self,
        photographs: Sequence[Pixels],
        *,
        seed: int = 0,
        steps: int = 0,
        mode: DdimMode = "exact",
        brightness: float | None = None,
        contrast: float | None = None,
    ) -> list[Pixels]:
        """Enhances photographs of one size and type at once, without tiles.

        The network may round differently in a batch than with one photograph: by one step, in a few pixels.

        Args:
            photographs: each [H, W, 3] RGB, uint8 or uint16.
            seed: of the noise, the same for every photograph.
            steps: as in `enhance`.
            mode: the sampler.
            brightness, contrast: as in `enhance`.

        Returns:
            Each [H, W, 3] of the same type.

        Raises:
            ValueError: as `enhance` does.
        """
        for pixels in photographs:
            check_pixels(pixels)
        steps = sampling_steps(self.file, steps or self.default_steps)
        luma = torch.cat([thumbnail_of_pixels(pixels) for pixels in photographs]).to(self.device)
        tone = result_tone(self.file, luma, brightness, contrast)
        gain = None if tone is None else tone.gain
        with autocast(self.device, self.precision):
            enhanced = sampler.enhance(
                self.network,
                signed_from_pixels(np.stack(photographs), self.device),  # held by no name
                self.schedule,
                steps,
                seed,
                mode,
                gain,
            )
            return list(pixels_from_signed(match_tone(enhanced, tone), photographs[0].dtype))

    @torch.no_grad()
    def enhance_unit(self, pixels: NDArray[np.uint8], **settings: Any) -> Float[Tensor, "1 3 h w"]:
        """The result in [0, 1] on the student's device; in tiles where `enhance` takes them, and then rounded.

        Args:
            pixels: [H, W, 3] RGB.
            settings: seed, steps, mode, brightness and contrast as in `enhance`.

        Raises:
            ValueError: as `enhance` does.
        """
        if pixels.shape[0] * pixels.shape[1] > self.tiling()[0]:
            result = self.enhance(pixels, **settings)
            return unit_from_pixels(result[None].astype(np.uint8, copy=False), self.device)
        low = signed_from_pixels(pixels[None], self.device)
        return unit_from_signed(self.enhance_images(low, **settings))

    @torch.no_grad()
    def enhance_images(
        self,
        low: Float[Tensor, "b 3 h w"],
        *,
        seed: int = 0,
        steps: int = 0,
        mode: DdimMode = "exact",
        brightness: float | None = None,
        contrast: float | None = None,
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Enhances images in [-1, 1], without tiles; every image of the batch starts from the same noise.

        Args:
            low: on the student's device.
            seed: of the noise.
            steps: DDIM steps; 0 takes the student's own number.
            mode: the sampler.
            brightness: mean luma that the results shall have, in (0, 1); None is the weights' own.
            contrast: standard deviation of their luma, in (0, 0.5]; None is what training pairs like these have.
            gain: exposure gain of the whole image that each crop is from. The results, being crops, then keep the
                brightness and contrast that the network gives. None: the images are whole.

        Raises:
            ValueError: as `enhance` does.
        """
        steps = sampling_steps(self.file, steps or self.default_steps)
        tone = None
        if gain is None:
            tone = result_tone(self.file, thumbnail(unit_from_signed(low)), brightness, contrast)
            gain = None if tone is None else tone.gain
        with autocast(self.device, self.precision):
            enhanced = sampler.enhance(self.network, low, self.schedule, steps, seed, mode, gain)
        return match_tone(enhanced, tone)
