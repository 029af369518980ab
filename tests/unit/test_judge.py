"""The methods that are evaluated and how they are measured, without a cluster."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import ray.exceptions
import torch
from kornia.enhance import equalize_clahe
from torch import Tensor

from pipelines import failures, shards, storage
from pipelines.config.parts import CheckpointConfig, ComputeConfig
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation import results
from pipelines.evaluation.evaluate import find_images, fingerprint, plan_evaluate
from pipelines.evaluation.judge import CLAHE_CLIP, CLAHE_GRID, Judge, MemoryGauge, equalized, part_url
from pipelines.evaluation.methods import Method, methods_of
from pipelines.evaluation.report_page import Case, label, render
from pipelines.evaluation.results import Results, find_cases, interval, intervals
from pipelines.images import encode_png
from pipelines.shards import PAIR_SCHEMA, TONE_COLUMNS, Manifest, ShardEntry
from pipelines.training.validation import ValidationImages
from pipelines.weights import load_distances, load_lpips, save_network
from reddit_core.networks import Network
from reddit_core.networks.sr3_unet import UNet
from reddit_core.pixels import Pixels, signed_from_pixels, unit_from_signed
from reddit_core.student import Student
from reddit_core.weights import NetworkFile

SECRET = "hush-4711"
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def write_pairs(url: str, num_shards: int, side: int = 32) -> None:
    """So many shards of one pair each; more of them are the same dataset, grown."""
    import pyarrow as pa  # noqa: PLC0415 - next to its only use

    def write(number: int) -> ShardEntry:
        image = encode_png(np.full((side, side, 3), number, np.uint8))
        head = {"pair_id": f"p{number}", "low": image, "normal": image, "width": side, "height": side}
        row = {**head, **dict.fromkeys(TONE_COLUMNS, number / 255), "sha256": "0"}
        return shards.write_shard(url, f"v-{number}", pa.Table.from_pylist([row], PAIR_SCHEMA), split="validation")

    entries = tuple(write(number) for number in range(num_shards))
    shards.write_manifest(url, Manifest(kind="pairs", spec={"source": "test"}, shards=entries))


@pytest.fixture
def config(tmp_path: Path, tiny_unet: UNet) -> EvaluateConfig:
    """Of weights whose URL holds a credential."""
    pairs, weights = str(tmp_path / "pairs"), str(tmp_path / f"w.safetensors?X-Amz-Signature={SECRET}")
    write_pairs(pairs, 1)
    save_network(weights, NetworkFile(network=tiny_unet, facts={"num_steps": 2}))
    return EvaluateConfig(
        pairs=pairs, output=str(tmp_path / "o"), weights=(f"student:2={weights}",), compute=ComputeConfig(threads=1)
    )


@pytest.fixture
def alex(tmp_path: Path) -> str:
    """An AlexNet without the learned weights of LPIPS, at a URL with a credential."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {f"features.{i}.weight": torch.randn(o, c, k, k) / 99 for i, (o, c, k) in ALEX.items()}
    state |= {f"features.{i}.bias": torch.zeros(o) for i, (o, _, _) in ALEX.items()}
    url = str(tmp_path / f"alex.pth?X-Amz-Signature={SECRET}")
    torch.save(state, url)
    return url


@pytest.mark.parametrize("name", ["input", "clahe"])
def test_weights_cannot_take_the_name_of_another_row(name: str) -> None:
    with pytest.raises(ValueError, match=f"weights holds {name}:2, but {name} is a row already; give another name"):
        Method.parse(f"{name}:2=w.safetensors")


def test_pairs_that_were_added_make_another_evaluation(config: EvaluateConfig) -> None:
    before = fingerprint(config, methods_of(config))
    assert fingerprint(config, methods_of(config)) == before
    write_pairs(config.pairs, 2)
    after = fingerprint(config, methods_of(config))
    assert {name for name in after if after[name] != before[name]} == {"pairs_shards"}
    assert len(find_images(config)) == 2


def test_credentials_of_weights_are_not_shown(tmp_path: Path, config: EvaluateConfig, alex: str) -> None:
    config = EvaluateConfig(pairs=config.pairs, output=config.output, weights=config.weights, lpips=(alex,))
    shown = json.dumps([fingerprint(config, methods_of(config)), plan_evaluate(config).rows])
    assert "w.safetensors" in shown and "alex.pth" in shown
    assert SECRET not in shown


def test_a_backbone_without_learned_weights_is_called_uniform(config: EvaluateConfig, alex: str) -> None:
    assert list(load_distances((alex,))) == ["lpips_alex_uniform"]
    with pytest.raises(ValueError, match=r"lpips holds a second alex backbone, .*; give one file for each"):
        load_distances((alex, alex))
    page = Path(alex).with_name("page.html")
    page.write_text("404")
    with pytest.raises(ValueError, match=r"the state dict at .*page\.html cannot be read"):
        plan_evaluate(EvaluateConfig(pairs=config.pairs, output=config.output, lpips=(str(page),)))


def test_the_weights_of_the_lpips_package_are_taken_as_they_are(alex: str, tmp_path: Path) -> None:
    channels = (64, 192, 384, 256, 256)
    linear = {f"lin{tap}.model.1.weight": torch.full((1, c, 1, 1), 2 / c) for tap, c in enumerate(channels)}
    url = str(tmp_path / "alex_lin.pth")
    torch.save(linear, url)
    for urls in ((alex, url), (url, alex)):
        assert list(load_distances(urls)) == ["lpips_alex"]
        assert load_lpips(*urls).learned
    torch.save({name: weight[:, :32] for name, weight in linear.items()}, url)
    for without_partner in ([alex, url], [url]):
        with pytest.raises(ValueError, match=r"the LPIPS weights at .*alex_lin\.pth fit none of the backbones; give"):
            load_distances(without_partner)


def test_lpips_is_raw_and_gt_mean(config: EvaluateConfig, alex: str) -> None:
    judge = Judge(EvaluateConfig(pairs=config.pairs, output="o", lpips=(alex,)), [], "", "cpu")
    normal = np.random.default_rng(0).integers(0, 128, (64, 64, 3), dtype=np.uint8) * 2
    figures = judge.measure(normal // 2, normal)
    assert figures["lpips_alex_uniform"] > 0
    assert figures["lpips_alex_uniform_gt_mean"] == pytest.approx(0, abs=1e-6)


def test_a_flat_ground_truth_has_no_sharpness_and_does_not_count(config: EvaluateConfig) -> None:
    judge = Judge(EvaluateConfig(pairs=config.pairs, output="o"), [], "", "cpu")
    flat = np.full((32, 32, 3), 100, np.uint8)
    noisy = np.random.default_rng(0).integers(90, 110, flat.shape, dtype=np.uint8)
    rows = [judge.measure(noisy, normal) for normal in (flat, noisy)]
    assert rows[0]["sharpness"] is None and rows[0]["sharpness_gt_mean"] is None
    assert results.mean_of([row["sharpness"] for row in rows]) == 1
    method = Method("student", 2, "u")
    heads = [{"pair_id": i, "method": "student", "steps": 2, "seed": 0} for i in "ab"]
    judged = Results([method], [{**head, **row} for head, row in zip(heads, rows, strict=True)])
    assert judged.per_image(method, "sharpness") == {"b": 1.0}
    [row] = intervals(judged)
    assert row["sharpness"] == "one image" and " to " in row["psnr"]


def test_means_leave_out_what_does_not_exist_and_say_of_how_many_images(config: EvaluateConfig) -> None:
    judge = Judge(EvaluateConfig(pairs=config.pairs, output="o"), [], "", "cpu")
    noisy = np.random.default_rng(0).integers(90, 110, (32, 32, 3), dtype=np.uint8)
    rows = [judge.measure(noisy, noisy), judge.measure(noisy, 0 * noisy), judge.measure(noisy[:8], noisy[:8])]
    heads = [{"pair_id": i, "method": "input", "steps": 0, "seed": 0} for i in "abc"]
    judged = Results([Method("input", 0)], [{**head, **row} for head, row in zip(heads, rows, strict=True)])
    assert judged.left_out == {
        **{"psnr_gt_mean": 1, "psnr_moments": 1, "ssim": 1},
        **{"ssim_gt_mean": 2, "sharpness": 1, "sharpness_gt_mean": 1},
    }
    json.dumps(rows, allow_nan=False)


def test_a_validation_pair_below_every_window_ends_no_training(tmp_path: Path, tiny_unet: UNet, alex: str) -> None:
    write_pairs(str(tmp_path / "small"), 1, side=8)
    images = ValidationImages(str(tmp_path / "small"), CheckpointConfig(), (alex,))
    metrics, grid = images.judge(NetworkFile(network=tiny_unet), 2)
    assert math.isfinite(metrics["psnr"]) and grid is not None and grid.shape == (8, 24, 3)
    assert math.isnan(metrics["ssim"]) and math.isnan(metrics["lpips"])


def test_a_case_shows_what_does_not_exist_as_a_dash() -> None:
    row = {"psnr": 7.0, "psnr_gt_mean": None, "ssim": None, "sharpness": None}
    case = Case(pair_id="p", reasons=["worst"], figures={"input:0": row}, pictures={"input:0": "", "truth": ""})
    page = render("t", [{"method": "input", **row}], {}, [{"method": "input"}], [case])
    assert "PSNR 7.00 dB (- GT-mean)" in page and "SSIM -, sharpness -" in page


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (2, 1400), (1400, 1), (9, 9), (100, 150)])
def test_images_of_any_shape_are_equalized(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    result = equalized(image)
    assert result.shape == image.shape and result.min() >= 0 and result.max() <= 1
    if min(shape) > 8:
        assert torch.equal(result, equalize_clahe(image, CLAHE_CLIP, CLAHE_GRID))


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that `Student.enhance` gets, to which all above 60 x 60 pixels are large."""
    shapes: list[tuple[int, ...]] = []
    original = Student.enhance

    def enhance(self: Student, pixels: Pixels, **settings: object) -> Pixels:
        shapes.append(pixels.shape)
        return original(self, pixels, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Student, "enhance", enhance)
    monkeypatch.setattr(Network, "untiled_pixels", 60 * 60)
    return shapes


def test_large_images_are_judged_in_tiles(config: EvaluateConfig, tiled: list[tuple[int, ...]]) -> None:
    judge = Judge(config, [], "", "cpu")
    low, student = np.zeros((48, 80, 3), np.uint8), judge.methods[2]
    unit = judge.compute(student, low, seed=0)
    assert tiled[-1] == low.shape
    image = signed_from_pixels(low[None])
    with torch.no_grad():
        whole = unit_from_signed(judge.students[student.url].enhance_images(image, seed=0, steps=2))
    assert (unit - whole).abs().max() <= 0.51 / 255


def test_large_validation_images_are_enhanced_in_tiles(
    tmp_path: Path, tiny_unet: UNet, tiled: list[tuple[int, ...]]
) -> None:
    write_pairs(str(tmp_path / "large"), 1, side=72)
    images = ValidationImages(str(tmp_path / "large"), CheckpointConfig(validation_crop=0))
    assert images.judge(NetworkFile(network=tiny_unet), 2)[0].keys() >= {"psnr", "ssim"}
    assert tiled == [(72, 72, 3)]


def test_a_result_that_is_not_finite_is_refused(config: EvaluateConfig, tiny_unet: UNet, tmp_path: Path) -> None:
    next(tiny_unet.parameters()).data.fill_(math.nan)
    broken = str(tmp_path / "broken.safetensors")
    save_network(broken, NetworkFile(network=tiny_unet))
    judge = Judge(EvaluateConfig(pairs=config.pairs, output="o", weights=(f"student:2={broken}",)), [], "", "cpu")
    with pytest.raises(ValueError, match=r"the result of student:2 for p7 holds values that are not finite; use"):
        judge.run(judge.methods[2], np.zeros((32, 32, 3), np.uint8), 0, "p7")


@pytest.mark.skipif(MemoryGauge(torch.device("cpu")).at_rest is None, reason="the system does not tell peaks")
def test_a_call_takes_as_much_memory_the_third_time(tiny_unet: UNet) -> None:
    gauge, image, measured = MemoryGauge(torch.device("cpu")), torch.zeros(1, 3, 96, 96), []
    for _ in range(3):
        gauge.start()
        with torch.no_grad():
            tiny_unet(image, torch.ones(1), low=image)
        measured.append(gauge.peak_mb())
    attention = (48 * 48) ** 2 * 4 / 1e6  # of the inner level, every pixel to every other
    assert min(measured) > attention
    assert max(measured) < 1.2 * min(measured)


def test_cost_is_of_the_size_of_the_image(config: EvaluateConfig) -> None:
    """Memory is measured once for each size, and always known where it was."""
    judge = Judge(config, [], "", "cpu")
    costs = [judge.run(judge.methods[2], np.zeros((side, 64, 3), np.uint8), 0, "p")[1] for side in (64, 64, 128)]
    assert costs[0]["peak_mb_per_megapixel"] == costs[1]["peak_mb_per_megapixel"]
    assert all(cost["seconds_per_megapixel"] > 0 for cost in costs)
    assert len(judge.peak_mb) == 2


@pytest.mark.parametrize("kind", [ray.exceptions.ActorDiedError, ray.exceptions.WorkerCrashedError])
def test_a_process_that_was_killed_is_one_line(kind: type[ray.exceptions.RayError]) -> None:
    message = r"^[^\n]*most likely because memory ran out [^\n]*; what was judged is kept; give it more[^\n]*$"
    with (
        pytest.raises(OSError, match=message),
        failures.user_errors("evaluation", kept="what was judged is kept"),
    ):
        raise kind


def test_a_fault_in_an_actors_code_is_not_taken_for_lack_of_memory() -> None:
    fault = ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("__init__", "TypeError: a fault", TypeError()))
    with pytest.raises(ray.exceptions.ActorDiedError), failures.user_errors("evaluation", kept="nothing"):
        raise fault


def test_intervals_need_two_images_and_are_sorted_by_value() -> None:
    assert interval([]) is None
    assert interval([3.0]) == "one image"
    low, _, high = interval([10.0, 20.0]).partition(" to ")
    assert float(low) == 10 and float(high) == 20
    rows = [{"psnr": "9.5 to 12", "ssim": "one image", "sharpness": None, "ssim_gt_mean": 0.5}]
    page = render("t", rows, {}, rows, [])
    assert '<td data-value="9.5">9.5 to 12</td><td>one image</td><td class="number">-</td>' in page
    assert '<td class="number" data-value="0.5">0.5</td>' in page


def test_every_value_of_the_page_is_escaped() -> None:
    rows = [{"method": "<b>&", "psnr": 1.0}]
    case = Case(pair_id="<i>", reasons=["a<", "b"], figures={}, pictures={"<u>": "AAAA", "ground truth": "BBBB"})
    page = render("<t>", rows, {"<f>": {"<g>": ["<h>"]}}, rows, [case])
    escaped = ("<td>&lt;b&gt;&amp;</td>", "<h3>&lt;i&gt;</h3>", "a&lt;; b", "&lt;f&gt;: &lt;g&gt; &lt;h&gt;")
    assert all(text in page for text in escaped)
    assert not [tag for tag in ("<b>", "<i>", "<u>", "<t>", "<f>", "<g>", "<h>") if tag in page]
    assert "const [left, right] = box.querySelectorAll('.slider img')" in page


def test_raw_and_gt_mean_are_told_apart() -> None:
    names = ("sharpness", "sharpness_gt_mean", "lpips_vgg", "lpips_alex_uniform_gt_mean")
    assert [label(name) for name in names] == [
        "sharpness raw",
        "sharpness GT-mean",
        "lpips_vgg raw",
        "lpips_alex_uniform GT-mean",
    ]


def test_many_networks_share_the_cases_that_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST_CASES", 4)
    methods, parts, rows = [Method("a", 2, "u"), Method("b", 2, "u")], str(tmp_path), []
    for index in range(8):
        figures = (("a", index), ("b", (index + 4) % 8))
        own = [{"pair_id": f"p{index}", "method": m, "steps": 2, "seed": 0, "psnr": float(v)} for m, v in figures]
        rows += own
        part = {"rows": own, "pictures": {"a:2": "", "b:2": "", "ground truth": ""}, "shown": []}
        storage.write_bytes(part_url(parts, index), json.dumps(part).encode())
    cases = find_cases(parts, Results(methods, rows))
    assert [case.pair_id for case in cases] == ["p0", "p4", "p7", "p3"]  # the worst and the best one of each
