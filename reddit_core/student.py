"""A student ready to use: its weights on a device, in a precision, with the number of steps it was distilled for."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reddit_core import sampler
from reddit_core.brightness import exposure_gain, gains_of, mean_luma_of_pixels, with_brightness
from reddit_core.pixels import Pixels, pixels_from_signed, signed_from_pixels
from reddit_core.precision import Precision, autocast, lay_out_for_inference
from reddit_core.sampler import DdimMode
from reddit_core.shared_statistics import SharedNetwork
from reddit_core.tiles import TiledSampler
from reddit_core.weights import NetworkFile

TILE, OVERLAP = 1024, 64


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


def gain_of_pixels(pixels: Pixels, brightness: float | None) -> float:
    """Exposure gain to a mean luma in (0, 1); 1 if none is asked for."""
    return 1.0 if brightness is None else float(exposure_gain(brightness, mean_luma_of_pixels(pixels)))


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
        tile: int = TILE,
        overlap: int = OVERLAP,
        mode: DdimMode = "exact",
        brightness: float | None = None,
    ) -> Pixels:
        """Enhances a photograph of any size: in one piece up to `tile` x `tile` pixels, else in overlapping tiles.

        Memory holds the photograph, its result, two float32 images of its size, and what the network needs for one
        tile.

        Args:
            pixels: [H, W, 3] RGB, uint8 or uint16.
            seed: of the noise; the same seed gives the same bytes on the same machine.
            steps: DDIM steps; 0 takes the student's own number.
            tile: side of the tiles in pixels.
            overlap: pixels over which neighbouring tiles are blended, at most a quarter of `tile`.
            mode: the sampler.
            brightness: mean luma that the result shall have, in (0, 1). None is the weights' own; of a network that is
                not told the gain, whatever it gives.

        Returns:
            [H, W, 3] of the same type.

        Raises:
            ValueError: if the pixels are no RGB photograph, the number of steps is not known or does not divide the
                schedule, the brightness is out of range or needed and not known, the overlap is too wide, or the result
                is not finite.
        """
        check_pixels(pixels)
        if not 0 <= overlap <= tile // 4:
            raise ValueError(
                f"overlap is {overlap}, but must be between 0 and a quarter of the tile's {tile}; 64 is usual"
            )
        if pixels.shape[0] * pixels.shape[1] <= tile * tile:
            return self.enhance_batch([pixels], seed=seed, steps=steps, mode=mode, brightness=brightness)[0]
        steps = sampling_steps(self.file, steps or self.default_steps)
        asked = result_brightness(self.file, brightness)
        with autocast(self.device, self.precision):
            tiled = TiledSampler(
                self.tiled_network, pixels, self.schedule, mode, tile, overlap, gain_of_pixels(pixels, asked), asked
            )
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
    ) -> list[Pixels]:
        """Enhances photographs of one size and type at once, without tiles.

        The network may round differently in a batch than with one photograph: by one step, in a few pixels.

        Args:
            photographs: each [H, W, 3] RGB, uint8 or uint16.
            seed: of the noise, the same for every photograph.
            steps: as in `enhance`.
            mode: the sampler.
            brightness: as in `enhance`.

        Returns:
            Each [H, W, 3] of the same type.

        Raises:
            ValueError: as `enhance` does.
        """
        for pixels in photographs:
            check_pixels(pixels)
        steps = sampling_steps(self.file, steps or self.default_steps)
        asked = result_brightness(self.file, brightness)
        low = signed_from_pixels(np.stack(photographs), self.device)
        gains = torch.tensor([gain_of_pixels(pixels, asked) for pixels in photographs], device=self.device)
        with autocast(self.device, self.precision):
            enhanced = sampler.enhance(self.network, low, self.schedule, steps, seed, mode, gains)
            return list(pixels_from_signed(with_brightness(enhanced, asked), photographs[0].dtype))

    @torch.no_grad()
    def enhance_images(
        self,
        low: Float[Tensor, "b 3 h w"],
        *,
        seed: int = 0,
        steps: int = 0,
        mode: DdimMode = "exact",
        brightness: float | None = None,
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Enhances images in [-1, 1], without tiles; every image of the batch starts from the same noise.

        Args:
            low: on the student's device.
            seed: of the noise.
            steps: DDIM steps; 0 takes the student's own number.
            mode: the sampler.
            brightness: mean luma that the results shall have, in (0, 1); None is the weights' own.
            gain: exposure gain of the whole image that each crop is from. The results, being crops, are then not scaled
                to a mean luma. None: the images are whole.

        Raises:
            ValueError: as `enhance` does.
        """
        steps = sampling_steps(self.file, steps or self.default_steps)
        asked = result_brightness(self.file, brightness) if gain is None else None
        if asked is not None:
            gain = gains_of(low, asked)
        with autocast(self.device, self.precision):
            enhanced = sampler.enhance(self.network, low, self.schedule, steps, seed, mode, gain)
        return with_brightness(enhanced, asked)
