"""LPIPS over random weights of the two backbones' shapes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.weights import load_lpips
from reddit_core.lpips import Lpips, backbone_of

VGG_CHANNELS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    **dict.fromkeys((19, 21, 24, 26, 28), (512, 512)),
}
ALEX_CHANNELS = {0: (3, 64), 3: (64, 192), 6: (192, 384), 8: (384, 256), 10: (256, 256)}
ALEX_KERNELS = {0: 11, 3: 5}
State = dict[str, Tensor]


def random_state(channels: dict[int, tuple[int, int]], kernels: dict[int, int], bias: float = 0.0) -> State:
    """Weights that keep the size of the activations (He et al. 2015)."""
    generator, state = torch.Generator().manual_seed(0), {}
    for index, (inside, outside) in channels.items():
        kernel = kernels.get(index, 3)
        weight = torch.empty(outside, inside, kernel, kernel).uniform_(-1, 1, generator=generator)
        state[f"features.{index}.weight"] = weight * (6 / (inside * kernel**2)) ** 0.5
        state[f"features.{index}.bias"] = torch.full((outside,), bias)
    return state


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {"vgg": random_state(VGG_CHANNELS, {}), "alex": random_state(ALEX_CHANNELS, ALEX_KERNELS)}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("backbone", ["vgg", "alex"])
def test_a_distance(states: dict[str, State], images: Tensor, backbone: str) -> None:
    lpips = Lpips(states[backbone])
    near, far = images + 0.02 * images.flip(3), images.flip(2)
    with torch.no_grad():
        to_itself, to_near, to_far, back = (
            lpips(one, other) for one, other in ((images, images), (images, near), (images, far), (far, images))
        )
    assert lpips.backbone == backbone
    assert to_itself.tolist() == [0, 0]
    assert (to_near > 0).all() and (to_far > to_near).all()
    torch.testing.assert_close(to_far, back)


@pytest.mark.parametrize(("backbone", "least"), [("vgg", 16), ("alex", 31)])
def test_images_that_are_too_small_or_too_large_have_no_distance(
    states: dict[str, State], backbone: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lpips = Lpips(states[backbone])
    assert lpips.least_side == least
    images = torch.rand(1, 3, least, least + 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert lpips(images, images).tolist() == [0]
        assert lpips(images[:, :, :-1], images[:, :, :-1]).isnan().all()
        monkeypatch.setattr("reddit_core.lpips.MOST_PIXELS", least**2)
        assert lpips(images, images).isnan().all()


def test_one_tap_by_hand(states: dict[str, State], images: Tensor) -> None:
    """The first AlexNet tap, through torch's own layers."""
    lpips, state = Lpips(states["alex"]), states["alex"]
    conv = torch.nn.Conv2d(3, 64, 11, stride=4, padding=2)
    conv.load_state_dict({"weight": state["features.0.weight"], "bias": state["features.0.bias"]})
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    with torch.no_grad():
        hidden = conv((images - shift[:, None, None]) / scale[:, None, None]).relu()
        torch.testing.assert_close(lpips.features(images)[0], hidden / (hidden.norm(dim=1, keepdim=True) + 1e-10))


def test_given_linear_weights_are_used(states: dict[str, State], images: Tensor) -> None:
    plain = states["alex"]
    tripled = {
        f"lin{tap}.model.1.weight": torch.full((1, channels, 1, 1), 3 / channels)
        for tap, channels in enumerate((64, 192, 384, 256, 256))
    }
    with torch.no_grad():
        one, other = (Lpips(state)(images, images.flip(2)) for state in (plain, {**plain, **tripled}))
    torch.testing.assert_close(other, 3 * one)
    assert (Lpips(plain).name, Lpips({**plain, **tripled}).name) == ("lpips_alex_uniform", "lpips_alex")
    one_is_missing = {name: weight for name, weight in tripled.items() if not name.startswith("lin3")}
    with pytest.raises(ValueError, match=r"lack lin3\.model\.1\.weight; give all of lin0 to lin4, or none"):
        Lpips({**plain, **one_is_missing})
    with pytest.raises(ValueError, match=r"lin1\.model\.1\.weight has shape .*, but the backbone has 128 channels"):
        Lpips({**states["vgg"], **tripled})


def test_the_gradient_is_finite_where_relu_leaves_nothing(images: Tensor) -> None:
    lpips = Lpips(random_state(ALEX_CHANNELS, ALEX_KERNELS, bias=-0.5))
    estimate = images.clone().requires_grad_()
    assert any((tap == 0).all(dim=1).any() for tap in lpips.features(images)), "no dead pixel: nothing is tested"
    lpips(estimate, images.flip(2)).sum().backward()
    assert estimate.grad.isfinite().all()


def test_nothing_is_trained(states: dict[str, State]) -> None:
    assert not list(Lpips(states["alex"]).parameters())


@pytest.mark.parametrize("state", [{}, {"features.0.weight": torch.zeros(32, 3, 3, 3)}])
def test_another_backbone_is_refused(state: State) -> None:
    with pytest.raises(ValueError, match=r"neither VGG16 nor AlexNet .* give torchvision's vgg16 or alexnet"):
        backbone_of(state)


def test_a_file_that_is_no_backbone_is_refused_by_its_name(tmp_path: Path, states: dict[str, State]) -> None:
    page, half = tmp_path / "page.safetensors", tmp_path / "half.safetensors"
    page.write_text("<html>404</html>")
    save_file({name: value for name, value in states["alex"].items() if name != "features.3.bias"}, half)
    module = tmp_path / "module.pth"
    torch.save(torch.nn.Conv2d(3, 4, 1), module)
    for path, words in ((page, "cannot be read"), (module, "cannot be read"), (half, "lacks 'features.3.bias'")):
        with pytest.raises(ValueError, match=rf"the state dict at {path} {words}"):
            load_lpips(str(path))
