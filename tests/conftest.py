"""What all tests share: checked shapes, one Ray cluster, a tiny network, small photographs, and released figures."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping

# Before anything of reddit_core is imported, so that every annotated shape and dtype is checked when called.
# The numeric tower lets an int stand where a float is asked for, as static type checkers do.
jaxtyping.install_import_hook("reddit_core", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from pipelines.weights import save_network  # noqa: E402
from reddit_core.degrade import DegradeConfig, degrade  # noqa: E402
from reddit_core.networks.sr3_unet import UNet, UNetConfig  # noqa: E402
from reddit_core.weights import NetworkFile  # noqa: E402

TESTS = Path(__file__).parent
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
# Folders whose name is the marker of every test below them.
MARKED_FOLDERS = ("ray", "gpu")
# The groups of tests that take longest begin first, so that no process is left with one of them at the end.
LONGEST = ("mlflow", str(TESTS / "ray" / "test_pipeline.py"))
# Where the tests for a GPU run; `cpu` shows on any machine that they are sound themselves.
GPU_TESTS_ON = os.environ.get("REDDIT_GPU_TESTS_ON", "cuda")

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their folder, groups and orders them for parallel runs, and skips those for a GPU without one."""
    without_gpu = pytest.mark.skip(reason="needs a CUDA device, and torch finds none here")
    for item in items:
        for folder in MARKED_FOLDERS:
            if (TESTS / folder) in item.path.parents:
                item.add_marker(folder)
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
        if item.get_closest_marker("gpu") and GPU_TESTS_ON == "cuda" and not torch.cuda.is_available():
            item.add_marker(without_gpu)
    items.sort(key=lambda item: -(group_of(item) in LONGEST))


def group_of(item: pytest.Item) -> str:
    """The tests of a group run in one process, one after the other."""
    mark = item.get_closest_marker("xdist_group")
    assert mark
    return str(mark.args[0])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As many as the jobs' workers have in tests; what plans a job in this process may have left another number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests for a GPU run."""
    return torch.device(GPU_TESTS_ON)


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """The tensors of tests/golden (its README says what each is); do not change them in place."""
    return load_file(TESTS / "golden" / "released.safetensors")


@pytest.fixture(scope="session")
def save_pth() -> Callable[[dict[str, Tensor]], bytes]:
    """A function from any state dict to the bytes of a `.pth`."""

    def save(state: dict[str, Tensor]) -> bytes:
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()

    return save


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session, started as the jobs start theirs."""
    import ray  # noqa: PLC0415 - the unit tests run without it

    from pipelines import cluster  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)  # never somebody's own cluster
        patch.setenv("RAY_worker_niceness", "0")  # as urgent as the tests that wait for them
        # Without processes that no test needs: workers before there is work, and what watches for machines of a cloud
        # that are about to be taken away.
        patch.setenv("RAY_enable_worker_prestart", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        cluster.start_ray()
        yield
        ray.shutdown()


@pytest.fixture
def tiny_unet() -> UNet:
    """A seeded network of 39 thousand parameters that predicts `v`."""
    torch.manual_seed(0)
    return UNet(UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)).eval()


@pytest.fixture
def weights(tmp_path: Path, tiny_unet: UNet) -> str:
    """The file of an untrained student of two steps."""
    url = str(tmp_path / "student.safetensors")
    save_network(url, NetworkFile(network=tiny_unet, facts={"num_steps": 2}))
    return url


@pytest.fixture(scope="session")
def photographs() -> dict[str, NDArray[np.uint8]]:
    """Four photographs by name, each [96, 128, 3] uint8."""
    import skimage.data  # noqa: PLC0415 - slow to import, and most tests need no photograph

    def shrunk(name: str) -> NDArray[np.uint8]:
        image = Image.fromarray(getattr(skimage.data, name)())
        return np.asarray(image.resize((128, 96), Image.Resampling.BOX))

    return {name: shrunk(name) for name in PHOTOGRAPHS}


@pytest.fixture(scope="session")
def make_lol_folder(photographs: dict[str, NDArray[np.uint8]]) -> Callable[[Path], Path]:
    """Makes a folder in LOLv1's layout: `our485/{low,high}/N.png`, eight pairs of 48 x 64 pixels, two of each scene."""

    def make(root: Path) -> Path:
        rng, number = np.random.default_rng(0), 0
        for side in ("low", "high"):
            (root / "our485" / side).mkdir(parents=True)
        for photograph in photographs.values():
            for top, left in ((0, 0), (48, 64)):
                number += 1
                normal = photograph[top : top + 48, left : left + 64]
                low = degrade(normal, DegradeConfig(), rng)
                Image.fromarray(normal).save(root / "our485" / "high" / f"{number}.png")
                Image.fromarray(low).save(root / "our485" / "low" / f"{number}.png")
        return root

    return make


@pytest.fixture
def lol_folder(tmp_path: Path, make_lol_folder: Callable[[Path], Path]) -> Path:
    """Such a folder, which the test may change."""
    return make_lol_folder(tmp_path / "LOLv1")
