"""Tiles agree with each other, and with the untiled result."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from reddit_core import tiles
from reddit_core.networks import Network
from reddit_core.networks.layers import SelfAttention
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.pixels import Pixels
from reddit_core.schedule import NoiseSchedule
from reddit_core.shared_statistics import SharedAttention, SharedNetwork, SharedNorm, State
from reddit_core.student import Student
from reddit_core.tiles import blend_weights, plan_spans, sample_boxes
from reddit_core.weights import NetworkFile, decode_network

SCHEDULE = NoiseSchedule()
TRAINED = Path(__file__).parents[2] / "weights" / "lol-student-2.safetensors"


@pytest.fixture(params=["v", "eps"])
def deeper_unet(request: pytest.FixtureRequest) -> UNet:
    """A network of three levels, with attention at a quarter of the resolution."""
    torch.manual_seed(1)
    config = UNetConfig(
        base_channels=8, channel_mults=(1, 2, 2), num_res_blocks=1, norm_groups=4, prediction=request.param
    )
    return UNet(config).eval()


def enhance(
    network: Network, pixels: Pixels, steps: int, seed: int = 0, tile: int = 1024, overlap: int = 64
) -> NDArray[np.unsignedinteger]:
    student = Student(NetworkFile(network=network, schedule=SCHEDULE))
    return student.enhance(pixels, seed=seed, steps=steps, tile=tile, overlap=min(overlap, tile // 4))


def darkened(photograph: NDArray[np.uint8], repeat: int = 2) -> NDArray[np.uint8]:
    return np.tile(photograph // 6, (repeat, repeat, 1))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), tile=st.integers(4, 20), share=st.integers(0, 4), multiple=st.sampled_from([1, 2, 8]))
def test_spans_cover_an_axis_and_weights_add_up(size: int, tile: int, share: int, multiple: int) -> None:
    size, tile = size * multiple, tile * multiple
    overlap = tile * share // 16
    spans = plan_spans(size, tile, overlap, multiple)
    assert spans[0].start == 0
    assert spans[-1].stop == size
    assert len({span.stop - span.start for span in spans}) == 1
    for earlier, later in pairwise(spans):
        assert earlier.stop - later.start >= overlap
    assert all(side % multiple == 0 for span in spans for side in span)
    total = torch.zeros(size)
    for span, weight in zip(spans, blend_weights(spans), strict=True):
        assert weight.min() >= 0
        total[span.start : span.stop] += weight
    torch.testing.assert_close(total, torch.ones(size))


@pytest.mark.parametrize(("size", "tile", "overlap", "multiple"), [(1000, 256, 64, 8), (777, 128, 32, 1)])
def test_weights_move_smoothly_from_tile_to_tile(size: int, tile: int, overlap: int, multiple: int) -> None:
    """No step of the weights is above the steepest one of a smooth step over half an overlap."""
    spans = plan_spans(size, tile, overlap, multiple)
    assert len(spans) > 2
    for span, weight in zip(spans, blend_weights(spans), strict=True):
        assert weight.diff().abs().max() <= 1.5 / (overlap / 2) + 1e-6
        inner = [weight[0]] * (span.start > 0) + [weight[-1]] * (span.stop < size)
        assert all(end == 0 for end in inner), "what sees the least of its surroundings counts"


@pytest.mark.parametrize(("height", "width"), [(40, 1000), (64, 64), (8, 8), (512, 768)])
def test_patches_lie_in_the_image_and_are_as_many_as_fit(height: int, width: int) -> None:
    boxes = sample_boxes(height, width, 128 * 128, 8)
    assert all(0 <= box[0].start < box[0].stop <= height for box in boxes)
    assert all(0 <= box[1].start < box[1].stop <= width for box in boxes)
    area = sum((box[0].stop - box[0].start) * (box[1].stop - box[1].start) for box in boxes)
    assert area <= 128 * 128
    assert len(set(map(str, boxes))) == len(boxes)


def test_an_image_no_larger_than_the_sample_is_its_own_only_patch() -> None:
    assert sample_boxes(96, 160, 96 * 160, 8) == [(slice(0, 96), slice(0, 160))]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_tiled_is_untiled(deeper_unet: UNet, photographs: dict[str, NDArray[np.uint8]], num_steps: int) -> None:
    pixels = darkened(photographs["coffee"])[:183, :250]
    whole = enhance(deeper_unet, pixels, num_steps, tile=256).astype(float)
    tiled = enhance(deeper_unet, pixels, num_steps, tile=160, overlap=40)
    assert np.abs(tiled - whole).mean() < 0.25, "the sample is the image"


@pytest.mark.parametrize("count", [2, 1])
def test_tiled_by_a_sample_of_an_image_is_untiled(
    photographs: dict[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A sample of a half, and of a quarter of the image, with weights as people have them."""
    pixels = np.concatenate([darkened(photographs[name]) for name in ("coffee", "chelsea")]).astype(np.uint16) * 257
    monkeypatch.setattr(tiles, "LEAST_SAMPLE", pixels.shape[0] * pixels.shape[1] * count // 4)
    student = Student(decode_network(TRAINED.read_bytes()))
    whole, tiled = (student.enhance(pixels, steps=1, tile=tile, overlap=24) / 257 for tile in (400, 128))
    assert np.abs(tiled - whole).mean() < 2, "of a tenth of a megapixel; large samples are far better"


def test_tiles_of_a_trained_network_leave_no_seams(photographs: dict[str, NDArray[np.uint8]]) -> None:
    """Tiled is untiled, and what differs does not jump where one tile gives way to the next (cut hard, 12-fold)."""
    file = decode_network(TRAINED.read_bytes())
    pixels = darkened(photographs["coffee"])[:128].astype(np.uint16) * 257
    whole, tiled = (Student(file).enhance(pixels, steps=2, tile=tile, overlap=24) / 257 for tile in (256, 96))
    difference = tiled - whole
    assert np.abs(difference).mean() < 0.5
    jumps = np.abs(np.diff(difference, axis=1)).mean(axis=(0, 2))
    at_seams = np.zeros(len(jumps), bool)
    for earlier, later in pairwise(plan_spans(pixels.shape[1], 96, 24, file.network.config.size_multiple)):
        at_seams[later.start : earlier.stop] = True
    # A tenth of an 8-bit step cannot be seen.
    assert jumps[at_seams].max() < max(5 * jumps[~at_seams].mean(), 0.1)


def test_without_shared_statistics_tiles_would_differ(
    deeper_unet: UNet, photographs: dict[str, NDArray[np.uint8]]
) -> None:
    """What `shared_statistics` is for: the same tile, alone and as a part."""
    pixels = darkened(photographs["rocket"])
    whole = enhance(deeper_unet, pixels, 1, tile=256).astype(float)
    alone = enhance(deeper_unet, np.ascontiguousarray(pixels[:96, :96]), 1)
    tiled = enhance(deeper_unet, pixels, 1, tile=96, overlap=24)
    inner = np.s_[16:64, 16:64]
    assert np.abs(tiled[inner] - whole[inner]).mean() < np.abs(alone[inner] - whole[inner]).mean() / 4


def test_same_seed_same_bytes_other_seed_others(tiny_unet: UNet, photographs: dict[str, NDArray[np.uint8]]) -> None:
    pixels = darkened(photographs["chelsea"], repeat=1)
    first, again, other = (enhance(tiny_unet, pixels, 1, seed=seed, tile=64, overlap=16) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_16_bit_is_finer_than_8_bit_and_agrees_with_it(
    tiny_unet: UNet, photographs: dict[str, NDArray[np.uint8]]
) -> None:
    pixels = darkened(photographs["astronaut"], repeat=1)
    shallow = enhance(tiny_unet, pixels, 2)
    deep = enhance(tiny_unet, pixels.astype(np.uint16) * 257, 2)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - shallow).max() <= 0.51
    assert len(np.unique(deep)) > 256


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3)])
def test_any_size_works(tiny_unet: UNet, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 9, np.uint8)
    result = enhance(tiny_unet, pixels, 1, tile=24, overlap=4)
    assert result.shape == pixels.shape


def test_overlap_is_checked(tiny_unet: UNet) -> None:
    with pytest.raises(ValueError, match="overlap is 40, but must be between 0 and a quarter of the tile's 100"):
        student = Student(NetworkFile(network=tiny_unet))
        student.enhance(np.zeros((8, 8, 3), np.uint8), steps=1, tile=100, overlap=40)


def test_peak_memory_does_not_hold_the_features_of_the_whole_image(
    tiny_unet: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network never sees more than a tile (plus rounding) or a sample of as many pixels."""
    monkeypatch.setattr(tiles, "LEAST_SAMPLE", 0)
    seen: list[int] = []
    forward = UNet.forward

    def watched(
        self: UNet, z: torch.Tensor, level: torch.Tensor, *, low: torch.Tensor, gain: torch.Tensor | None = None
    ) -> torch.Tensor:
        seen.append(z.shape[0] * z.shape[2] * z.shape[3])
        return forward(self, z, level, low=low, gain=gain)

    monkeypatch.setattr(UNet, "forward", watched)
    enhance(tiny_unet, np.full((200, 266, 3), 20, np.uint8), 1, tile=128, overlap=16)
    assert max(seen) <= (128 + 4) ** 2


def test_statistics_of_a_sample_that_is_the_whole_image_are_exact(deeper_unet: UNet) -> None:
    low, noise = torch.randn(2, 1, 3, 64, 64).clamp(-1, 1)
    level = torch.tensor([0.3])
    network = SharedNetwork(deeper_unet)
    with torch.no_grad():
        expected = deeper_unet(noise, level, low=low)
        with network.sample(64, (0, 0)) as sampled:
            torch.testing.assert_close(sampled(noise, level, low=low), expected, rtol=1e-4, atol=1e-5)
        with network.apply() as applied:
            torch.testing.assert_close(applied(noise, level, low=low), expected, rtol=1e-4, atol=1e-5)


def test_a_sample_counts_the_inner_parts_of_its_patches() -> None:
    norm = SharedNorm(nn.GroupNorm(2, 4), State(phase="sample", height=32, margins=(8, 0)))
    features = torch.randn(3, 4, 16, 8)  # at half the resolution
    norm(features)
    assert norm.used is not None
    inner = features[:, :, 4:-4].unflatten(1, (2, 2))
    torch.testing.assert_close(norm.used.mean.float(), inner.mean(dim=(0, 2, 3, 4)))
    torch.testing.assert_close(norm.used.variance.float(), inner.var(dim=(0, 2, 3, 4), correction=0) + norm.norm.eps)


class Pooled(UNet):
    """A U-Net whose output also depends on the mean of the whole image."""

    named = False

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(
        self, z: torch.Tensor, sqrt_alpha_bar: torch.Tensor, *, low: torch.Tensor, gain: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().forward(z, sqrt_alpha_bar, low=low, gain=gain) + self.pool(low)

    def global_layers(self) -> dict[str, nn.Module]:
        return {**super().global_layers(), **({"pool": self.pool} if self.named else {})}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (True, r"layer pool \(AdaptiveAvgPool2d\) looks at the whole image, but tiles cannot share its statistics yet"),
        (False, r"layer pool \(AdaptiveAvgPool2d\) may look at the whole image, but the network does not name it"),
    ],
)
def test_a_layer_that_tiles_do_not_know_is_rejected_and_never_skipped(
    tiny_unet: UNet, named: bool, message: str
) -> None:
    network = Pooled(tiny_unet.config).eval()
    network.named = named
    pixels = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        enhance(network, pixels, 1, tile=32, overlap=8)
    assert enhance(network, pixels, 1).shape == pixels.shape, "in one piece it needs no sharing"


class Unnamed(UNet):
    """A U-Net that forgets to name its norms and attention."""

    def global_layers(self) -> dict[str, nn.Module]:
        return {}


def test_a_norm_that_the_network_does_not_name_is_rejected(tiny_unet: UNet) -> None:
    with pytest.raises(
        ValueError, match=r"layer .* \(GroupNorm\) may look at the whole image, but the network does not"
    ):
        SharedNetwork(Unnamed(tiny_unet.config))


def test_every_global_layer_is_shared(deeper_unet: UNet) -> None:
    shared = SharedNetwork(deeper_unet)
    assert not any(isinstance(layer, (nn.GroupNorm, SelfAttention)) for layer in own_layers(shared.network))
    for kind, own in ((SharedNorm, nn.GroupNorm), (SharedAttention, SelfAttention)):
        count = sum(isinstance(layer, kind) for layer in shared.network.modules())
        assert count == sum(isinstance(layer, own) for layer in deeper_unet.modules()) > 0


def own_layers(network: nn.Module) -> Iterator[nn.Module]:
    """All layers, without those that a shared layer keeps for their weights."""
    for layer in network.children():
        yield layer
        if not isinstance(layer, (SharedNorm, SharedAttention)):
            yield from own_layers(layer)


def test_outside_of_a_pass_a_shared_network_does_not_run(tiny_unet: UNet) -> None:
    shared, image = SharedNetwork(tiny_unet), torch.zeros(1, 3, 8, 8)
    with torch.no_grad(), shared.sample(8, (0, 0)) as network:
        network(image, torch.ones(1), low=image)
    with pytest.raises(AssertionError, match="runs within a pass"):
        shared.network(image, torch.ones(1), low=image)


def test_the_network_itself_is_left_alone(tiny_unet: UNet) -> None:
    before = {name: value.clone() for name, value in tiny_unet.state_dict().items()}
    SharedNetwork(tiny_unet)
    assert sum(isinstance(module, nn.GroupNorm) for module in tiny_unet.modules()) > 0
    assert all(torch.equal(value, before[name]) for name, value in tiny_unet.state_dict().items())
