"""Exports a student for other programs: one ONNX file from an image in [0, 1] to an image in [0, 1], of any size.

Photo tools and chainers (darktable's side-loaded models, for one) hand a model an `input` of [1, 3, H, W] sRGB in
[0, 1] and expect an `output` of the same shape. So everything else is inside: the noise (a constant square that is
repeated), the exposure gain, mirrored margins up to the network's multiple, and the scale to the weights' brightness.

A host that hands over tiles has each of them enhanced as if it were the whole photograph, and so made equally bright.
With a fixed `gain` all tiles get the same exposure, and the results are not scaled.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from pipelines import reporting, storage
from pipelines.config.use import ExportConfig
from pipelines.enhancement.exporting import (
    HOST_FOLDER,
    HOST_MODEL,
    UnrolledSampler,
    convert,
    onnx_session,
    onnx_versions,
    prepare,
)
from pipelines.reporting import Report
from reddit_core.pixels import signed_from_unit, unit_from_signed
from reddit_core.sampler import seeded_noise
from reddit_core.tone import BLOCK, make_tone, match_tone, thumbnail
from reddit_core.weights import NetworkFile

METADATA = "config.json"
NOISE_SIDE = 512
# A quarter of a step of 8 bits.
TOLERANCE = 1e-3
CHECKED_SIZES = ((64, 96), (61, 83), (130, 47))
EXAMPLE_SIZE = (61, 83)


class Prepare(nn.Module):
    """What the network is given for an image: noise, the image with margins, and its exposure gain."""

    noise: Tensor

    def __init__(self, multiple: int, gain: float, brightness: float | None, seed: int) -> None:
        super().__init__()
        self.multiple, self.gain, self.brightness = multiple, gain, brightness
        self.register_buffer("noise", seeded_noise((1, 3, NOISE_SIDE, NOISE_SIDE), seed))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # `partial=False`, here and in the last part: a graph that is exported takes whole blocks, at any size.
        unit = image.clamp(0, 1)  # once: onnxscript joins two equal clamps, and loses the limits of the second
        low = signed_from_unit(unit)
        rows, columns = (self.mirrored(size, low.device) for size in low.shape[-2:])
        down, across = (torch.arange(index.shape[0], device=low.device) % NOISE_SIDE for index in (rows, columns))
        fixed = torch.full_like(low[:, 0, 0, 0], self.gain or 1.0)
        gain = fixed if self.brightness is None else make_tone(thumbnail(unit, partial=False), self.brightness).gain
        return self.noise[:, :, down][:, :, :, across], low[:, :, rows][:, :, :, columns], gain

    def mirrored(self, size: int, device: torch.device) -> Tensor:
        """Rows (or columns) of the image up to the network's multiple: those beyond its edge are mirrored there."""
        index = torch.arange((size + self.multiple - 1) // self.multiple * self.multiple, device=device)
        return torch.where(index < size, index, 2 * (size - 1) - index).clamp(min=0)


class Network(nn.Module):
    """All steps of the sampler."""

    def __init__(self, file: NetworkFile, steps: int) -> None:
        super().__init__()
        self.sampler, self.takes_gain = (
            UnrolledSampler(file, steps),
            file.network.config.takes_gain,
        )

    def forward(self, noise: Tensor, low: Tensor, gain: Tensor) -> Tensor:
        return self.sampler.run(noise, low, gain if self.takes_gain else None)


class Finish(nn.Module):
    """The result without margins, in [0, 1], with the weights' brightness and the contrast that they predict."""

    def __init__(self, brightness: float | None, contrast: tuple[float, ...] | None) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def forward(self, image: Tensor, enhanced: Tensor) -> Tensor:
        height, width = (torch.arange(size, device=image.device) for size in image.shape[-2:])
        whole = enhanced[:, :, height][:, :, :, width]
        tone = None
        if self.brightness is not None:
            tone = make_tone(thumbnail(image.clamp(0, 1), partial=False), self.brightness, weights=self.contrast)
        return unit_from_signed(match_tone(whole, tone)).clamp(0, 1)


class HostProgram(nn.Module):
    """From [1, 3, H, W] in [0, 1] to the same.

    Args:
        file: the weights.
        steps: sampling steps.
        gain: exposure gain of every input; 0 takes that which leads to the weights' brightness.
        seed: of the noise.
    """

    def __init__(self, file: NetworkFile, steps: int, gain: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        brightness = None if gain else file.brightness
        self.multiple = file.network.config.size_multiple
        self.prepare = Prepare(self.multiple, gain, brightness, seed)
        self.network, self.finish = Network(file, steps), Finish(brightness, file.contrast)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.finish(image, self.network(*self.prepare(image)))
        return result


def export_for_hosts(config: ExportConfig) -> Report:
    """Writes the model and its metadata, after checking that it agrees with torch.

    Raises:
        ValueError: if the weights cannot be used, the packages of the extra are missing, or the export differs.
    """
    file, steps = prepare(config)
    if config.gain and not file.network.config.takes_gain:
        raise ValueError(f"gain is {config.gain:g}, but this network is told none; leave --gain out")
    storage.check_writable(config.output)
    program = HostProgram(file, steps, config.gain).eval()
    model = to_host_onnx(program, config.opset)
    rows = list(check_host_parity(program, model))
    folder = storage.join(config.output, HOST_FOLDER)
    storage.write_bytes(storage.join(folder, HOST_MODEL), model)
    storage.write_bytes(storage.join(folder, METADATA), json.dumps(metadata(steps, config.gain), indent=1).encode())
    facts: dict[str, Any] = {"steps": steps, **onnx_versions(model), "tolerance": TOLERANCE}
    facts |= {"gain": config.gain or "from each input", "MB": len(model) / 1e6}
    report = Report(title=f"Exported for other programs: {folder}", rows=rows, facts=facts, url=config.output)
    reporting.save(report)
    return report


def to_host_onnx(program: HostProgram, opset: int) -> bytes:
    """One ONNX file with its weights inside; height and width are free.

    Its three parts are exported one by one, since torch cannot tell that the size with margins is a multiple of the
    network's.
    """
    import onnx  # noqa: PLC0415 - of an extra that only this job needs

    # Two blocks of the mean luma each way at least: torch's program would be another one for a single block.
    least = 2 * BLOCK
    free = {2: Dim("height", min=least, max=2**14), 3: Dim("width", min=least, max=2**14)}
    multiples = {axis: program.multiple * Dim(name, min=2, max=2**12) for axis, name in ((2, "rows"), (3, "columns"))}
    image = torch.rand((1, 3, *EXAMPLE_SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = program.prepare(image)
        enhanced = program.network(*inputs)
    names = ["noise", "low", "gain"]
    padded = {2: Dim("padded_height", min=least, max=2**14), 3: Dim("padded_width", min=least, max=2**14)}
    parts = [
        part_of(program.prepare, (image,), (free,), ["input"], names, opset),
        part_of(program.network, inputs, (multiples, multiples, None), names, ["enhanced"], opset),
        part_of(program.finish, (image, enhanced), (free, padded), ["image", "enhanced"], ["output"], opset),
    ]
    merged = onnx.compose.merge_models(parts[0], parts[1], [(name, name) for name in names])
    # The last part takes the image too: it reads the first part's input.
    for node in parts[2].graph.node:
        node.input[:] = ["input" if name == "image" else name for name in node.input]
    del parts[2].graph.input[[value.name for value in parts[2].graph.input].index("image")]
    merged.graph.node.extend(parts[2].graph.node)
    merged.graph.initializer.extend(parts[2].graph.initializer)
    del merged.graph.output[:]
    merged.graph.output.extend(parts[2].graph.output)
    onnx.checker.check_model(merged)
    serialized: bytes = merged.SerializeToString()
    return serialized


def part_of(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    names: list[str],
    outputs: list[str],
    opset: int,
) -> Any:
    """A part as an ONNX model whose inner names begin with that of its class."""
    import onnx  # noqa: PLC0415 - of an extra that only this job needs

    with torch.no_grad():
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    model = onnx.load_model_from_string(convert(exported, names, outputs, opset))
    del model.graph.value_info[:]
    prefix = f"{type(module).__name__.lower()}/"
    return onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def check_host_parity(program: HostProgram, model: bytes) -> Iterator[reporting.Row]:
    """The largest difference of the file from torch, at sizes that are no multiples of the network's too.

    Raises:
        ValueError: if one is above `TOLERANCE`.
    """
    session = onnx_session(model)
    for number, (height, width) in enumerate(CHECKED_SIZES):
        image = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(number)) / 4
        with torch.no_grad():
            expected = program(image).numpy()
        result: NDArray[np.float32] = session.run(["output"], {"input": image.numpy()})[0]
        difference = float(np.abs(result - expected).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{HOST_MODEL} differs from torch by {difference:.2g} at {height} x {width}, more than {TOLERANCE}; "
                "nothing was written: use another version of torch or onnxruntime"
            )
        yield {"height": height, "width": width, "difference": difference}


def metadata(steps: int, gain: float) -> dict[str, object]:
    """darktable's description of a model (`src/ai/README.md` of its source, release 5.6)."""
    exposure = f"exposure gain {gain:g}" if gain else "each input is brought to the brightness that it was trained on"
    return {
        "id": HOST_FOLDER,
        "name": "reddit low light",
        "description": f"ReDDiT student, {steps} steps, for low-light photographs; {exposure}",
        "task": "denoise",
        "version": "1.0",
        "backend": "onnx",
        "tiling": True,
        "num_inputs": 1,
    }
