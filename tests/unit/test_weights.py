"""Weights as bytes: ours, and the released ones."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile, decode_network, encode_network, read_metadata

State = dict[str, Tensor]
SavePth = Callable[[object], bytes]
UnusedTensors = Callable[[UNet], State]
FORMER = Path(__file__).parents[1] / "golden" / "reddit-unet-1.safetensors"
# The released LOLv1 network: attention at 16 x 16 of the 128 pixels that it was made for, which is level 3.
RELEASED = UNetConfig(
    base_channels=64, channel_mults=(1, 1, 2, 2, 4), attention_levels=(3,), num_res_blocks=2, prediction="eps"
)


def released_state(unet: UNet) -> State:
    """The tensors that have an effect, under the released names."""
    return {f"denoise_fn.{name}": value for name, value in unet.state_dict().items()}


@pytest.fixture
def eps_unet() -> UNet:
    torch.manual_seed(1)
    config = UNetConfig(
        base_channels=8,
        channel_mults=(1, 1, 2),
        attention_levels=(1,),
        num_res_blocks=2,
        norm_groups=4,
        prediction="eps",
    )
    return UNet(config).eval()


def test_ours_come_back_whole(eps_unet: UNet) -> None:
    schedule = NoiseSchedule(num_steps=64, beta_start=1e-3, beta_end=0.1)
    facts = {"num_steps": 2, "teacher": {"sha256": "ab"}, "seconds": 1.5}
    file = decode_network(encode_network(NetworkFile(network=eps_unet, schedule=schedule, facts=facts)))
    assert (file.network.config, file.schedule, file.facts) == (eps_unet.config, schedule, facts)
    assert not file.network.training
    state = file.network.state_dict()
    assert list(state) == list(eps_unet.state_dict())
    assert all(torch.equal(state[name], value) for name, value in eps_unet.state_dict().items())


def test_the_bytes_follow_from_the_weights(tiny_unet: UNet) -> None:
    """The library alone writes its metadata in another order each time."""
    file = NetworkFile(network=tiny_unet, facts={"b": 1, "a": 2})
    reordered = NetworkFile(network=tiny_unet, facts={"a": 2, "b": 1})
    assert len({encode_network(file) for _ in range(10)} | {encode_network(reordered)}) == 1


def test_anybody_can_read_them(tiny_unet: UNet) -> None:
    data = encode_network(NetworkFile(network=tiny_unet))
    tensors = load(data)
    assert set(tensors) == set(tiny_unet.state_dict())
    assert int.from_bytes(data[:8], "little") % 8 == 0  # tensors stay aligned
    assert set(read_metadata(data)) == {"format", "network", "schedule", "facts"}
    assert json.loads(read_metadata(data)["network"])["kind"] == "sr3-unet"


def test_files_of_the_former_format_still_load() -> None:
    """The bytes were written by the code of November 2026, before weights said which kind of network they hold."""
    data = FORMER.read_bytes()
    assert read_metadata(data)["format"] == "reddit-unet-1"
    file = decode_network(data)
    assert file.network.config == UNetConfig(
        base_channels=2,
        channel_mults=(1, 2),
        attention_levels=(1,),
        num_res_blocks=1,
        norm_groups=2,
        dropout=0.1,
        prediction="eps",
    )
    assert file.schedule == NoiseSchedule(num_steps=64, beta_end=1e-2)
    assert file.num_steps == 2 and file.facts["role"] == "student"
    for name, tensor in load(data).items():
        assert torch.equal(file.network.state_dict()[name], tensor.float())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"kind": "transformer", "config": {}}, "holds a network of kind 'transformer', but only film-unet, sr3-unet"),
        (
            {"kind": "sr3-unet", "config": {"width": 3}},
            "a network of kind sr3-unet is not described like this .*'width'",
        ),
    ],
)
def test_networks_that_are_not_known_are_refused(tiny_unet: UNet, network: object, message: str) -> None:
    metadata = {**read_metadata(encode_network(NetworkFile(network=tiny_unet))), "network": json.dumps(network)}
    with pytest.raises(ValueError, match=message):
        decode_network(save(tiny_unet.state_dict(), metadata))


def test_half_precision_halves_the_size(tiny_unet: UNet) -> None:
    file = NetworkFile(network=tiny_unet)
    half = encode_network(file, torch.float16)
    assert len(half) < 0.6 * len(encode_network(file))
    for name, value in decode_network(half).network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tiny_unet.state_dict()[name].half().float())


def test_released_weights_are_read_with_their_shape_inferred(
    eps_unet: UNet, save_pth: SavePth, unused_tensors: UnusedTensors
) -> None:
    betas = torch.linspace(2e-4, 3e-2, 129)
    state = {"betas": betas, "alphas_cumprod": torch.cumprod(1 - betas, 0), **released_state(eps_unet)}
    file = decode_network(save_pth({**state, **unused_tensors(eps_unet)}), norm_groups=4)
    assert file.network.config == eps_unet.config
    assert file.schedule == NoiseSchedule(num_steps=128, beta_start=2e-4, beta_end=3e-2)
    inputs = {"z": torch.randn(2, 3, 8, 8), "sqrt_alpha_bar": torch.rand(2), "low": torch.randn(2, 3, 8, 8)}
    with torch.no_grad():
        assert torch.equal(file.network(**inputs), eps_unet(**inputs))


def test_the_old_pickle_format_and_a_missing_schedule(eps_unet: UNet) -> None:
    stream = io.BytesIO()
    torch.save(released_state(eps_unet), stream, _use_new_zipfile_serialization=False)
    file = decode_network(stream.getvalue(), norm_groups=4)
    assert file.network.config == eps_unet.config and file.schedule == NoiseSchedule()


def test_the_released_shape_has_17_4_million_parameters(save_pth: SavePth, unused_tensors: UnusedTensors) -> None:
    unet = UNet(RELEASED)
    unused = unused_tensors(unet)
    assert sum(value.numel() for value in unet.parameters()) == 17_117_315
    assert sum(value.numel() for value in unused.values()) == 316_867  # together 17.4 M
    file = decode_network(save_pth({**released_state(unet), **unused, "betas": torch.linspace(1e-4, 2e-2, 513)}))
    assert file.network.config == RELEASED and file.schedule == NoiseSchedule()


def test_the_golden_network_is_of_the_released_kind(golden: State, save_pth: SavePth) -> None:
    network = {name: value for name, value in golden.items() if name.startswith("denoise_fn.")}
    config = decode_network(save_pth(network)).network.config
    assert config == UNetConfig(
        base_channels=32, channel_mults=(1, 1, 2), attention_levels=(2,), num_res_blocks=1, prediction="eps"
    )


class Harmful:
    """Would end this process when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return raise_system_exit, (3,)


def raise_system_exit(status: int) -> None:
    raise SystemExit(status)


def test_a_pth_cannot_run_code(save_pth: SavePth) -> None:
    with pytest.raises(ValueError, match=r"\.pth file cannot be read .* give a whole one that holds tensors only"):
        decode_network(save_pth({"denoise_fn.downs.0.weight": Harmful()}))


def test_a_cut_pth_is_refused(eps_unet: UNet, save_pth: SavePth) -> None:
    data = save_pth(released_state(eps_unet))
    with pytest.raises(ValueError, match=r"\.pth file cannot be read"):
        decode_network(data[: len(data) // 2], norm_groups=4)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(3), r"holds a Tensor, but a state dict is needed; save one"),
        ({"conv.weight": torch.zeros(3)}, r"holds no denoise_fn\.downs\.0\.weight, .* give the \*_gen\.pth file"),
    ],
)
def test_other_pth_files_are_refused(state: object, message: str, save_pth: SavePth) -> None:
    with pytest.raises(ValueError, match=message):
        decode_network(save_pth(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denoise_fn.stray.weight": torch.zeros(2)}, r"0 are missing \[\], 1 are unknown \['stray.weight'\]; of .pth"),
        ({"denoise_fn.mid.0.attn.out.bias": torch.zeros(3)}, r"do not fit the network they describe .*size mismatch"),
        ({"betas": torch.linspace(0.1, 0.3, 129).square()}, r"betas .* run from 0.01 to 0.09, but not along a line"),
    ],
)
def test_released_weights_that_do_not_fit_are_refused(
    eps_unet: UNet, change: State, message: str, save_pth: SavePth
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        decode_network(save_pth({**released_state(eps_unet), **change}), norm_groups=4)
    assert "\n" not in str(error.value)


def test_released_weights_with_other_groups_are_refused(eps_unet: UNet, save_pth: SavePth) -> None:
    with pytest.raises(ValueError, match=r"base_channels is 8, .* multiple of norm_groups \(32\); change one"):
        decode_network(save_pth(released_state(eps_unet)))


def test_a_missing_tensor_is_refused(eps_unet: UNet, save_pth: SavePth) -> None:
    state = released_state(eps_unet)
    del state["denoise_fn.mid.1.res_block.block2.block.3.bias"]
    with pytest.raises(ValueError, match=r"1 are missing \['mid.1.res_block.block2.block.3.bias'\], 0 are unknown"):
        decode_network(save_pth(state), norm_groups=4)


def test_altered_weights_of_ours_are_refused(tiny_unet: UNet) -> None:
    data = encode_network(NetworkFile(network=tiny_unet))
    tensors, metadata = load(data), read_metadata(data)
    bias = "final_conv.block.3.bias"
    with pytest.raises(ValueError, match=r"size mismatch for final_conv.block.3.bias"):
        decode_network(save({**tensors, bias: torch.zeros(4)}, metadata))
    del tensors[bias]
    with pytest.raises(ValueError, match=r"1 are missing \['final_conv.block.3.bias'\].* write it again with train_"):
        decode_network(save(tensors, metadata))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"not a weights file \(.*\); give a .safetensors of this project or a released .pth"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a weights file"),
        (save({"weight": torch.zeros(2)}), "says format None, but a network of this project says 'reddit-network-1'"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_network(data)


@pytest.mark.parametrize("first_bytes", [b"\x80", b"PK"])
def test_safetensors_whose_header_length_looks_like_a_pickle_are_still_read(
    tiny_unet: UNet, first_bytes: bytes
) -> None:
    """The length of the header stands first, and can be any number; it is walked to one that misleads."""
    length = int.from_bytes(encode_network(NetworkFile(network=tiny_unet, facts={"padding": ""}))[:8], "little")
    wanted = next(
        number for number in range(length, length + 70_000, 8) if number.to_bytes(8, "little").startswith(first_bytes)
    )
    data = encode_network(NetworkFile(network=tiny_unet, facts={"padding": "x" * (wanted - length)}))
    assert data.startswith(first_bytes)
    assert decode_network(data).network.config == tiny_unet.config
