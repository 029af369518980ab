"""Reads, enhances and writes photographs: in this process, or as the actor of a pool."""

import errno
import hashlib
import io
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines import formats, images, retries, storage
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.metadata import fit_metadata
from pipelines.enhancement.photo_files import in_format, read_photograph, write_photograph
from pipelines.enhancement.photograph import Photograph
from pipelines.enhancement.work import Work, urls_of_results
from pipelines.images import reduced
from pipelines.redaction import printable
from pipelines.threads import torch_threads
from pipelines.weights import load_student
from reddit_core.pixels import Pixels

COMPARISON_SIDE = 2048
# Read errors that concern one file: a bad sector, a cycle of links.
OF_A_FILE = (errno.EIO, errno.ELOOP)


class Enhancer:
    """Reads, enhances and writes photographs; several calls run at once, but only one uses the network."""

    def __init__(self, config: EnhanceConfig, work: Work, device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.config, self.work = config, work
        self.student = load_student(config.weights, device, config.precision, steps=work.steps)
        self.network_is_free = threading.Lock()

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        number = int(batch["id"][0])
        row = {**self.process(self.work.missing[number]), "name": "", "id": number}  # Arrow cannot hold every name
        return {column: [value] for column, value in row.items()}

    def process(self, name: str) -> dict[str, Any]:
        """A row for the driver: a photograph's figures, the `reason` why it was left out, or the error of storage."""
        try:
            photograph, sha256 = self.read(name)
            pixels, seconds = self.enhance(photograph.pixels)
            notes = self.write(name, photograph, pixels)
        except ValueError as error:
            return outcome(name, reason=printable(str(error)))
        except OSError as error:  # reported by the driver, as one line
            return outcome(name, of_storage=printable(str(error)) or type(error).__name__)
        megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
        return outcome(name, sha256=sha256, megapixels=megapixels, seconds=seconds, notes="; ".join(notes))

    def read(self, name: str) -> tuple[Photograph, str]:
        """Reads a photograph; returns also the SHA-256 of its file.

        Raises:
            ValueError: if it is broken, or storage has the file but cannot read it.
            OSError: if storage fails.
        """
        try:
            data = storage.read_bytes(self.work.url_of(name))
            photograph = images.with_or_without_end(
                lambda: read_photograph(data, self.config.max_megapixels), allow_truncated=self.config.allow_truncated
            )
            return photograph, hashlib.sha256(data).hexdigest()
        except OSError as error:
            of_the_file = error.errno in OF_A_FILE or retries.refuses_name(error)
            if isinstance(error, retries.PERMANENT_ERRORS) or of_the_file:
                raise ValueError(f"it cannot be read ({type(error).__name__}: {error.strerror or error})") from None
            raise

    def write(self, name: str, photograph: Photograph, pixels: Pixels) -> tuple[str, ...]:
        """Writes the result, and says what of the photograph's metadata its format has no room for.

        Raises:
            ValueError: if the output cannot hold a file of its name.
            OSError: if storage fails.
        """
        result, *comparison = urls_of_results(self.config, name)
        files = {url: side_by_side(photograph.pixels, pixels) for url in comparison}
        if self.config.writes_one_file:
            photograph, pixels = in_format(photograph, pixels, formats.format_of(self.config.output))
        photograph, notes = fit_metadata(photograph)
        # Last, since a photograph counts as done when this file is there.
        files[result] = write_photograph(photograph, pixels)
        try:
            for url, data in files.items():
                storage.write_bytes(url, data)
        except OSError as error:
            if retries.refuses_name(error):
                raise ValueError(f"the output cannot hold a file of this name ({error.strerror}); rename it") from None
            raise
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
    sha256: str = "",
    megapixels: float = 0.0,
    seconds: float = 0.0,
    notes: str = "",
) -> dict[str, Any]:
    """A row of `Enhancer.process`."""
    figures = {"megapixels": megapixels, "seconds": seconds, "notes": notes}
    return {"name": name, "reason": reason, "of_storage": of_storage, "sha256": sha256, **figures}


def side_by_side(before: Pixels, after: Pixels) -> bytes:
    """A JPEG of both next to each other, 8-bit, each with at most `COMPARISON_SIDE` pixels a side."""
    halves = [reduced(pixels, COMPARISON_SIDE) for pixels in (before, after)]
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(halves, axis=1)).save(sink, format="JPEG", quality=92)
    return sink.getvalue()
