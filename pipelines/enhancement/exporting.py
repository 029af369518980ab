"""Exports a student for use without this project: its sampler unrolled around the network, as ONNX and torch.export.

Both take `noise` (standard normal) and `low` (a whole image in [-1, 1]), float32 [batch, 3, height, width], and return
the enhanced image in [-1, 1]. If the network is told the exposure gain, they also take `brightness` and `contrast`,
float32 [1]: mean luma in (0, 1) and its standard deviation that results shall have; a contrast of 0 is predicted from
the image. In ONNX both are optional, with the weights' own brightness and 0 as defaults. The program takes all but
`noise` by keyword, ONNX takes all by name. Batch, height and width are free; height and width must be
multiples of the network's (at least two of them): mirror the bottom and right edges out to one, and crop the result.
"""

import io
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from pipelines import reporting, storage
from pipelines.config.use import ExportConfig
from pipelines.extras import require_packages
from pipelines.model_card import HEADING, ModelCard
from pipelines.reporting import Report
from pipelines.weights import load_network
from reddit_core.pixels import unit_from_signed
from reddit_core.sampler import ddim_sample
from reddit_core.student import sampling_steps
from reddit_core.tone import Tone, make_tone, match_tone, thumbnail
from reddit_core.weights import NetworkFile

ONNX, PT2, CARD = "student.onnx", "student.pt2", "README.md"
# What `hosting.py` writes: a folder that darktable 5.6 finds below its `models`, and its model.
HOST_FOLDER, HOST_MODEL = "denoise-reddit", "model.onnx"
# The opset from which `Split` states its number of parts, which torch's converter to older ones leaves there.
SPLIT_COUNTS = 18
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# The exported graph computes in float32, the sampler in float64 around the network.
TOLERANCE = 1e-4
# Batch, and height and width in multiples of the network's, at which an export is checked.
CHECKED_SIZES = ((1, 4, 6), (2, 7, 3))
EXAMPLE_SIZE = (2, 4, 6)


class UnrolledSampler(nn.Module):
    """All steps of `sampler.ddim_sample` in `exact` mode, with the coefficients as constants."""

    def __init__(self, file: NetworkFile, num_steps: int) -> None:
        super().__init__()
        self.network, self.contrast_weights = file.network, file.contrast
        grid = file.schedule.grid(num_steps)
        levels = [float(file.schedule.sqrt_alpha_bar[index]) for index in reversed(grid)]
        self.steps = list(pairwise(levels))

    def forward(
        self, noise: Tensor, *, low: Tensor, brightness: Tensor | None = None, contrast: Tensor | None = None
    ) -> Tensor:
        tone = tone_of(low, brightness, contrast, self.contrast_weights)
        return match_tone(self.run(noise, low, None if tone is None else tone.gain), tone)

    def run(self, noise: Tensor, low: Tensor, gain: Tensor | None) -> Tensor:
        """The sampler's result for a gain per image, in [-1, 1]."""
        z = noise
        for a_t, a_s in self.steps:
            sigma_t, sigma_s = (1 - a_t**2) ** 0.5, max(0.0, 1 - a_s**2) ** 0.5
            output = self.network(z, torch.full_like(z[:, 0, 0, 0], a_t), low=low, gain=gain)
            x_0 = self.clean_image(output, z, a_t, sigma_t).clamp(-1, 1)
            z = a_s * x_0 + (sigma_s / sigma_t) * (z - a_t * x_0)
        return z.clamp(-1, 1)

    def clean_image(self, output: Tensor, z: Tensor, a_t: float, sigma_t: float) -> Tensor:
        """`x_0` as `diffusion.interpret` has it, in float32."""
        match self.network.config.prediction:
            case "eps":
                return (z - sigma_t * output) / a_t
            case "v":
                return a_t * z - sigma_t * output
            case "x":
                return output


def tone_of(
    low: Tensor, brightness: Tensor | None, contrast: Tensor | None, weights: tuple[float, ...] | None
) -> Tone | None:
    """The tone of whole images in [-1, 1]; None of a network that is not told the gain."""
    return None if brightness is None else make_tone(thumbnail(unit_from_signed(low)), brightness, contrast, weights)


def export(config: ExportConfig) -> Report:
    """Writes `student.onnx`, `student.pt2` and the model card, after checking that both agree with torch.

    Raises:
        ValueError: if the weights cannot be used, the packages of the extra are missing, or an export differs.
    """
    file, steps = prepare(config)
    storage.check_writable(config.output)
    program = export_program(file, steps)
    onnx_bytes, pt2_bytes = to_onnx(program, file, config.opset), to_pt2(program)
    versions = onnx_versions(onnx_bytes)
    rows = list(check_parity(file, steps, onnx_bytes, pt2_bytes))
    storage.write_bytes(storage.join(config.output, ONNX), onnx_bytes)
    storage.write_bytes(storage.join(config.output, PT2), pt2_bytes)
    storage.write_bytes(storage.join(config.output, CARD), card_of(config, file, steps, versions))
    multiple = file.network.config.size_multiple
    facts = {"steps": steps, **versions, "tolerance": TOLERANCE, "multiple of height and width": multiple}
    report = Report(title=f"Exported: {config.output}", rows=rows, facts=facts, url=config.output)
    reporting.save(report)
    return report


def prepare(config: ExportConfig) -> tuple[NetworkFile, int]:
    """The weights and the number of steps; checks packages and config first.

    Raises:
        ValueError: if something is missing or does not fit.
    """
    require_packages("export", NEEDED)
    file = load_network(config.weights)
    return file, sampling_steps(file, config.steps, config.weights)


def example(file: NetworkFile, size: tuple[int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """The inputs by name, for a batch and a height and width in multiples of the network's."""
    multiple = file.network.config.size_multiple
    shape = (size[0], 3, size[1] * multiple, size[2] * multiple)
    generator = torch.Generator().manual_seed(seed)
    low, noise = torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)
    inputs = {"noise": noise, "low": low}
    return {**inputs, **{name: torch.tensor([value]) for name, value in setting_defaults(file).items()}}


def setting_defaults(file: NetworkFile) -> dict[str, float]:
    """The settings that an export takes beside the images, and their defaults; none if the network has no brightness.

    Without weights that predict contrast, 0 would have no meaning, so there is no such setting.
    """
    brightness = {} if file.brightness is None else {"brightness": file.brightness}
    return brightness | ({"contrast": 0.0} if brightness and file.contrast else {})


def export_program(file: NetworkFile, steps: int) -> torch.export.ExportedProgram:
    """The graph, with free batch, height and width."""
    multiple = file.network.config.size_multiple
    # torch takes a size of 1 for a special case, so the innermost level must not have it.
    free = {
        0: Dim("batch", min=1, max=2**16),
        2: multiple * Dim("rows", min=2, max=2**16),
        3: multiple * Dim("columns", min=2, max=2**16),
    }
    sampler = UnrolledSampler(file, steps).eval()
    with torch.no_grad():
        inputs = example(file, EXAMPLE_SIZE)
        shapes = {name: free if name in ("noise", "low") else None for name in inputs}
        noise = inputs.pop("noise")
        return torch.export.export(sampler, (noise,), inputs, dynamic_shapes=shapes, strict=False)


def to_pt2(program: torch.export.ExportedProgram) -> bytes:
    sink = io.BytesIO()
    torch.export.save(program, sink)
    return sink.getvalue()


def to_onnx(program: torch.export.ExportedProgram, file: NetworkFile, opset: int) -> bytes:
    """One ONNX file with its weights inside.

    Raises:
        ValueError: if the network cannot be written in this opset.
    """
    import onnx  # noqa: PLC0415 - of an extra that only this job needs

    names = list(example(file, EXAMPLE_SIZE))
    model = onnx.load_model_from_string(convert(program, names, ["enhanced"], opset))
    for name, value in setting_defaults(file).items():  # an input that is an initializer too may be left out
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], dtype=np.float32), name))
    serialized: bytes = model.SerializeToString()
    return serialized


def convert(
    program: torch.export.ExportedProgram, input_names: list[str], output_names: list[str], opset: int
) -> bytes:
    """A graph as ONNX, of the lowest IR version that its opset allows.

    Raises:
        ValueError: if the graph cannot be written in this opset.
    """
    import onnx  # noqa: PLC0415 - of an extra that only this job needs

    converted = torch.onnx.export(
        program, dynamo=True, input_names=input_names, output_names=output_names, opset_version=opset, verbose=False
    )
    assert converted is not None, "the dynamo exporter returns a program"
    with tempfile.TemporaryDirectory(prefix="reddit-export-") as folder:
        path = Path(folder) / ONNX
        converted.save(str(path), external_data=False)
        model = onnx.load(str(path))
    found = model.opset_import[0].version
    if found != opset:  # torch leaves the model as it is if it cannot convert it
        raise ValueError(f"opset is {opset}, but this network can only be written in opset {found}; give that one")
    if opset < SPLIT_COUNTS:
        for node in model.graph.node:
            kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
            if node.op_type == "Split" and len(kept) < len(node.attribute):
                del node.attribute[:]
                node.attribute.extend(kept)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    serialized: bytes = model.SerializeToString()
    return serialized


def onnx_versions(onnx_bytes: bytes) -> dict[str, int]:
    """The versions of an ONNX file by which a runtime decides whether it can read it."""
    import onnx  # noqa: PLC0415 - of an extra that only this job needs

    model = onnx.load_model_from_string(onnx_bytes)
    return {"ONNX opset": model.opset_import[0].version, "ONNX IR version": model.ir_version}


def check_parity(file: NetworkFile, steps: int, onnx_bytes: bytes, pt2_bytes: bytes) -> Iterator[reporting.Row]:
    """The largest difference of each export from the sampler, at two image sizes.

    Raises:
        ValueError: if one is above `TOLERANCE`.
    """
    session = onnx_session(onnx_bytes)
    program = torch.export.load(io.BytesIO(pt2_bytes)).module()
    for size in CHECKED_SIZES:
        inputs = example(file, size, seed=1)
        low, noise = inputs["low"], inputs.pop("noise")
        with torch.no_grad():
            expected = expected_result(file, steps, noise, low)
            arrays = {name: value.numpy() for name, value in inputs.items()}
            results = {ONNX: torch.from_numpy(run_onnx(session, noise.numpy(), **arrays))}
            results[PT2] = program(noise, **inputs)
        for name, result in results.items():
            difference = float((result - expected).abs().max())
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{name} differs from torch by {difference:.2g} at {list(low.shape)}, more than {TOLERANCE}; "
                    "nothing was written: use another version of torch or onnxruntime"
                )
            yield {"file": name, "batch": size[0], "height": low.shape[2], "width": low.shape[3], "diff": difference}


def onnx_session(onnx_bytes: bytes) -> Any:
    import onnxruntime  # noqa: PLC0415 - of an extra that only this job needs

    return onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, noise: NDArray[np.float32], **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The enhanced image; `inputs` are `low` and perhaps some of `setting_defaults`."""
    result: NDArray[np.float32] = session.run(["enhanced"], {"noise": noise, **inputs})[0]
    return result


def expected_result(file: NetworkFile, steps: int, noise: Tensor, low: Tensor, **settings: float) -> Tensor:
    """The sampler's result on whole images, by default with the defaults of `setting_defaults`."""
    asked = {name: torch.tensor([value]) for name, value in {**setting_defaults(file), **settings}.items()}
    tone = tone_of(low, asked.get("brightness"), asked.get("contrast"), file.contrast)
    gain = None if tone is None else tone.gain
    return match_tone(ddim_sample(file.network, noise, file.schedule, steps, low=low, gain=gain), tone)


def card_of(config: ExportConfig, file: NetworkFile, steps: int, versions: Mapping[str, int] | None = None) -> bytes:
    """The card next to the weights, or one made from the facts that they hold, and the versions of the ONNX file.

    It notes if the sampler is unrolled for another number of steps than the student was distilled for.
    """
    distilled = file.num_steps or steps
    numbers = ", ".join(f"{name} {number}" for name, number in (versions or {}).items())
    note = f"\n`{ONNX}`: {numbers}.\n" if numbers else ""
    note += f"\nUnrolled for {steps} steps, distilled for {distilled}.\n" if steps != distilled else ""
    beside = storage.join(posixpath.dirname(storage.resolve(config.weights)), CARD)
    if storage.exists(beside) and (found := storage.read_bytes(beside)).startswith(HEADING.encode()):
        return found + note.encode()
    interface = (
        "inputs: `low` in [-1, 1] (sRGB) and `noise` (standard normal), float32 [batch, 3, height, width]; output: the "
        f"enhanced image in [-1, 1]; height and width must be multiples of {file.network.config.size_multiple}"
    )
    if file.brightness is not None:
        interface += f"; `brightness`, float32 [1]: mean luma of the result in (0, 1), {file.brightness:.3f} by default"
    if "contrast" in setting_defaults(file):
        interface += "; `contrast`, float32 [1]: standard deviation of that luma; 0, the default, is predicted"
    card = ModelCard.from_facts(file.facts, distilled)
    facts = {**card.facts, "network": file.network.config, "schedule": file.schedule}
    return (replace(card, interface=interface, facts=facts).render() + note).encode()


def plan_export(config: ExportConfig) -> Report:
    """What would be written."""
    file, steps = prepare(config)
    names = (f"{HOST_FOLDER}/{HOST_MODEL}",) if config.host else (ONNX, PT2)
    parameters = sum(parameter.numel() for parameter in file.network.parameters())
    rows = [{"file": name, "MB, about": parameters * 4 / 1e6} for name in names]
    return Report(title=f"Plan of export: {config.output}", rows=rows, facts={"steps": steps, "parameters": parameters})
