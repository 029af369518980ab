"""What comes from storage is data: no code is unpickled, and no name leaves the folder it is meant for."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from jobs.cli import fail
from pipelines import storage
from pipelines.config.jobs import DistillConfig, IngestConfig, TuneConfig
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.work import list_photographs
from pipelines.pairs.layouts import list_pairs
from pipelines.search import outcome
from pipelines.training import runs
from pipelines.training.stream import Stream

ROOT = Path(__file__).parents[2]
FILES = sorted(path for layer in ("reddit_core", "pipelines", "jobs") for path in (ROOT / layer).rglob("*.py"))
# Functions that may run code which they find in a file, and the argument that forbids it, where there is one.
LOADERS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
UNPICKLERS = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "skops")


def unsafe_calls(source: str) -> Iterator[str]:
    """Calls in a source text that would unpickle what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        module, _, function = name.rpartition(".")
        if module in UNPICKLERS and function.lower() in ("load", "loads", "open", "unpickler"):
            yield name
        if name in LOADERS and given.get(LOADERS[name][0]) is not LOADERS[name][1]:
            yield name
        if name == "yaml.load" or given.get("allow_pickle") is True or given.get("weights_only") is False:
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled(path: Path) -> None:
    assert list(unsafe_calls(path.read_text())) == []


def test_what_would_unpickle_is_seen() -> None:
    unsafe = "pickle.loads(a); torch.load(f); torch.load(f, weights_only=False); np.load(f); yaml.load(f)"
    assert set(unsafe_calls(unsafe)) == {"pickle.loads", "torch.load", "np.load", "yaml.load"}
    assert list(unsafe_calls("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); json.loads(a)")) == []


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "a/.."])
def test_a_name_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    for url in (str(tmp_path), "s3://bucket/out"):
        with pytest.raises(ValueError, match="leaves its folder"):
            storage.join(url, name)


def test_photographs_whose_names_leave_their_folder_are_left_out() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/night/a.png", b"")
    config = EnhanceConfig(source="memory://night", output="memory://day", weights="memory://w")
    assert list_photographs(config)[1].images == ["a.png"]
    store.store["/night/b/../../evil.png"] = store.store["/night/a.png"]  # as a key of an object store may be
    listing = list_photographs(config)[1]
    assert listing.images == ["a.png"] and "has the part '..'" in listing.unusable["b/../../evil.png"]
    pairs = list_pairs(IngestConfig(source="memory://night", output="memory://day", layout="degrade")).pairs
    assert {pair.pair_id: bool(pair.problem) for pair in pairs} == {"a.png": False, "b/../../evil.png": True}
    with pytest.raises(ValueError, match=r"'b/../../evil.png' leaves its folder memory://day"):
        storage.join("memory://day", "b/../../evil.png")


def test_no_credential_of_a_url_is_recorded(tmp_path: Path) -> None:
    pairs, lpips = "https://user:hush@host/pairs", "memory://backbones/vgg.pth?X-Amz-Signature=hush"
    for signature in ("hush", "new"):
        storage.write_bytes(lpips.replace("hush", signature), b"a backbone")
    config = DistillConfig(cache="c", teacher="t", output=str(tmp_path), pairs=pairs, lpips=(lpips,))
    stream = Stream(stages=(), steps=1, batch_size=1, row_bytes=1)
    runs.record_config(str(tmp_path / "run"), config, stream)
    outcome.record_settings(TuneConfig(distill=config, output=str(tmp_path / "sweep")), stream)
    # A new signature goes on.
    renewed = replace(config, lpips=(lpips.replace("hush", "new"),))
    runs.record_config(str(tmp_path / "run"), renewed, stream)
    outcome.record_settings(TuneConfig(distill=renewed, output=str(tmp_path / "sweep")), stream)
    records = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(records) == 2 and all("hush" not in record and "vgg.pth" in record for record in records)
    assert "hush" not in outcome.to_toml(config, redacted=True)
    assert "hush" not in json.dumps(runs.recorded_settings(config))


def test_errors_show_no_credential(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("https://user:hush@host/x is missing")
    assert capsys.readouterr().err == "error: https://***@host/x is missing\n"
