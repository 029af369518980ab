"""Reads, enhances and writes photographs: in this process, or as the actor of a pool."""

import errno
import io
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines import formats, storage
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.metadata import fit_metadata
from pipelines.enhancement.photo_files import in_format, read_photograph, write_photograph
from pipelines.enhancement.photograph import Photograph
from pipelines.enhancement.work import Work, urls_of_results
from pipelines.images import reduced
from pipelines.threads import torch_threads
from pipelines.weights import load_student
from reddit_core.pixels import Pixels

COMPARISON_SIDE = 2048
# Read errors that concern one file: a bad sector, a name that is too long, a cycle of links.
OF_A_FILE = (errno.EIO, errno.ENAMETOOLONG, errno.ELOOP)


class Enhancer:
    """Reads, enhances and writes photographs; several calls run at once, but only one uses the network."""

    def __init__(self, config: EnhanceConfig, work: Work, device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.config, self.work = config, work
        self.student = load_student(config.weights, device, config.precision, steps=work.steps)
        self.network_is_free = threading.Lock()

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        row = self.process(self.work.missing[int(batch["id"][0])])
        return {column: [value] for column, value in row.items()}

    def process(self, name: str) -> dict[str, Any]:
        """A row for the driver: a photograph's figures, the `reason` why it was left out, or the error of storage."""
        try:
            photograph = self.read(name)
            pixels, seconds = self.enhance(photograph.pixels)
            notes = self.write(name, photograph, pixels)
        except ValueError as error:
            return outcome(name, reason=str(error))
        except OSError as error:  # reported by the driver, as one line
            return outcome(name, of_storage=str(error) or type(error).__name__)
        megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
        return outcome(name, megapixels=megapixels, seconds=seconds, notes="; ".join(notes))

    def read(self, name: str) -> Photograph:
        """Reads a photograph.

        Raises:
            ValueError: if it is broken, or storage has the file but cannot read it.
            OSError: if storage fails.
        """
        try:
            data = storage.read_bytes(storage.join(self.work.root, name))
            return read_photograph(data, self.config.max_megapixels)
        except OSError as error:
            if isinstance(error, storage.PERMANENT_ERRORS) or error.errno in OF_A_FILE:
                raise ValueError(f"it cannot be read ({type(error).__name__}: {error.strerror or error})") from None
            raise

    def write(self, name: str, photograph: Photograph, pixels: Pixels) -> tuple[str, ...]:
        """Writes the result, and says what of the photograph's metadata its format has no room for."""
        result, *comparison = urls_of_results(self.config, name)
        if comparison:
            storage.write_bytes(comparison[0], side_by_side(photograph.pixels, pixels))
        if self.config.writes_one_file:
            photograph, pixels = in_format(photograph, pixels, formats.format_of(self.config.output))
        photograph, notes = fit_metadata(photograph)
        # Last, since a photograph counts as done when this file is there.
        storage.write_bytes(result, write_photograph(photograph, pixels))
        return notes

    def enhance(self, pixels: Pixels) -> tuple[Pixels, float]:
        """The enhanced pixels, and the seconds that it took without waiting for the network."""
        config = self.config
        with self.network_is_free:
            started = time.perf_counter()
            result = self.student.enhance(
                pixels,
                seed=config.seed,
                tile=config.tile,
                overlap=config.overlap,
                **config.asked_tone,
            )
            return result, time.perf_counter() - started


def outcome(
    name: str,
    *,
    reason: str = "",
    of_storage: str = "",
    megapixels: float = 0.0,
    seconds: float = 0.0,
    notes: str = "",
) -> dict[str, Any]:
    """A row of `Enhancer.process`."""
    figures = {"megapixels": megapixels, "seconds": seconds, "notes": notes}
    return {"name": name, "reason": reason, "of_storage": of_storage, **figures}


def side_by_side(before: Pixels, after: Pixels) -> bytes:
    """A JPEG of both next to each other, 8-bit, each with at most `COMPARISON_SIDE` pixels a side."""
    halves = [reduced(pixels, COMPARISON_SIDE) for pixels in (before, after)]
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(halves, axis=1)).save(sink, format="JPEG", quality=92)
    return sink.getvalue()
