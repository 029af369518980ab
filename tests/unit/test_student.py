"""A student ready to use gives what its parts give, and says what it cannot use."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.tracking.mlflow_backend.student_model import StudentModel
from pipelines.weights import load_student, save_network
from reddit_core import sampler
from reddit_core.networks.film_unet import FilmUNet, FilmUNetConfig
from reddit_core.networks.sr3_unet import UNet
from reddit_core.pixels import pixels_from_signed, signed_from_pixels
from reddit_core.precision import Precision, lay_out_for_inference
from reddit_core.shared_statistics import SharedNetwork
from reddit_core.student import Student, sampling_steps
from reddit_core.tiles import TiledSampler
from reddit_core.weights import NetworkFile

ROWS, COLUMNS = 30, 43


@pytest.fixture
def file(tiny_unet: UNet) -> NetworkFile:
    return NetworkFile(network=tiny_unet, facts={"num_steps": 2})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """[30, 43, 3], dark."""
    return np.random.default_rng(0).integers(0, 60, (ROWS, COLUMNS, 3), dtype=np.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.uint8), ("bf16", np.uint16)])
def test_it_gives_bit_for_bit_what_network_and_sampler_give(
    file: NetworkFile, pixels: NDArray[np.uint8], precision: Precision, dtype: type[np.unsignedinteger]
) -> None:
    photograph = pixels.astype(dtype)
    student = Student(file, precision=precision)
    lay_out_for_inference(file.network, precision)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        low = signed_from_pixels(photograph)
        whole = sampler.enhance(file.network, low, file.schedule, 2, 7)
        tiled = TiledSampler(SharedNetwork(file.network), photograph, file.schedule, "exact", 32, 8).run(1, 7)
    assert torch.equal(student.enhance_images(low, seed=7), whole)
    np.testing.assert_array_equal(student.enhance(photograph, seed=7), pixels_from_signed(whole, dtype)[0])
    # The network with shared statistics is made once, and keeps nothing of a photograph.
    student.enhance(photograph[::-1], seed=8, steps=1, tile=32, overlap=8)
    np.testing.assert_array_equal(student.enhance(photograph, seed=7, steps=1, tile=32, overlap=8), tiled)


def test_three_lines_of_python(file: NetworkFile, pixels: NDArray[np.uint8], tmp_path) -> None:
    save_network(str(tmp_path / "student-2.safetensors"), file)
    student = load_student(str(tmp_path / "student-2.safetensors"))
    bright = student.enhance(pixels)
    assert bright.shape == pixels.shape and bright.dtype == np.uint8
    assert not np.shares_memory(bright, pixels)


def test_steps_come_from_the_call_the_student_or_the_weights(file: NetworkFile, tiny_unet: UNet) -> None:
    asked: list[int] = []
    tiny_unet.register_forward_pre_hook(lambda *_: asked.append(1))
    low = torch.zeros(1, 3, 4, 4)
    for student, steps, expected in ((Student(file), 0, 2), (Student(file, steps=4), 0, 4), (Student(file), 8, 8)):
        asked.clear()
        student.enhance_images(low, steps=steps)
        assert len(asked) == expected
    unknown = NetworkFile(network=tiny_unet)
    with pytest.raises(ValueError, match="the weights file does not say for how many steps it was distilled; add"):
        Student(unknown).enhance(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="s3://a/b does not say for how many steps"):
        sampling_steps(unknown, source="s3://a/b")
    with pytest.raises(ValueError, match="a grid of 3 steps does not divide"):
        sampling_steps(file, 3)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \[1, 4, 4, 3\]"),
        (np.zeros((4, 4, 3), np.uint32), r"uint32 \[4, 4, 3\]"),
    ],
)
def test_pixels_that_are_no_photograph_are_rejected(file: NetworkFile, pixels: np.ndarray, found: str) -> None:
    with pytest.raises(ValueError, match=rf"pixels are {found}, but must be RGB, uint8 or uint16 \[H, W, 3\]; convert"):
        Student(file).enhance(pixels)


def test_the_registered_model_gives_what_the_enhance_job_gives_and_tiles_like_it(
    file: NetworkFile, pixels: NDArray[np.uint8]
) -> None:
    sizes: list[torch.Size] = []
    student, model = Student(file), StudentModel(file)
    for tile, overlap in ((1024, 64), (32, 8)):
        expected = student.enhance(pixels, seed=3, steps=1, tile=tile, overlap=overlap)
        model.student.tiled_network.network.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
        params = {"steps": 1, "seed": 3, "tile": tile, "overlap": overlap, "brightness": 0.0, "contrast": 0.0}
        np.testing.assert_array_equal(model.predict(pixels[None], params), expected[None])
        assert bool(sizes) == (tile == 32), "a photograph is tiled if it is larger than a tile, and only then"


def test_each_network_says_what_fits_in_one_piece(tiny_unet: UNet) -> None:
    """In about 4 GB: 12.5 megapixels with the default network, half of it at twice its width, one with the released."""
    networks = [FilmUNet(FilmUNetConfig()), FilmUNet(FilmUNetConfig(channels=(64, 128))), tiny_unet]
    tilings = [Student(NetworkFile(network=network)).tiling() for network in networks]
    assert tilings == [(12_500_000, 2048), (6_250_000, 2048), (1024 * 1024, 1024)]
    assert Student(NetworkFile(network=tiny_unet)).tiling(512) == (512 * 512, 512)
