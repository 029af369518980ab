"""Imports only go down, and each seam is in one place (docs/design.md, "Layers")."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("reddit_core", "pipelines", "jobs")
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
# The science has no files, no environment, and runs wherever torch does.
NOT_IN_THE_SCIENCE = {"ray", "mlflow", "fsspec", "s3fs", "pyarrow", "os", "pathlib", "tyro", "torchvision"}
# Modules of MLflow that its documentation describes.
PUBLIC_MLFLOW = {f"mlflow.{name}" for name in ("entities", "exceptions", "models", "pyfunc", "types")}
# A file, or a folder whose modules share the work.
SEAMS = {
    "mlflow": "pipelines/tracking/mlflow_backend/",
    "fsspec": "pipelines/storage.py",
    "s3fs": "pipelines/storage.py",
}


def imported(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in a source text, also inside functions, as dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield str(node.module)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path.read_text())}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_look_at() -> None:
    assert {name_of(path).partition("/")[0] for path in FILES} == set(LAYERS)
    source = "import a.b as c\ndef f():\n    from d.e import g\n    import h, i.j"
    assert sorted(imported(source)) == ["a.b", "d.e", "h", "i.j"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    layer = LAYERS.index(name_of(path).partition("/")[0])
    assert not packages(path) & {*LAYERS[layer + 1 :], "tests"}


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("reddit_core/")], ids=name_of)
def test_the_science_knows_neither_cluster_nor_files_nor_environment(path: Path) -> None:
    assert not packages(path) & NOT_IN_THE_SCIENCE
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "open"]


@pytest.mark.parametrize("package", SEAMS)
def test_each_seam_is_in_one_place(package: str) -> None:
    users = [name_of(path) for path in FILES if package in packages(path)]
    assert [user for user in users if not user.startswith(SEAMS[package])] == []


def unit_of(module: str) -> str:
    """The package of `pipelines` that a module belongs to; a module directly below it stands for itself."""
    return ".".join(module.split(".")[:2])


def import_graph() -> dict[str, set[str]]:
    """For each package of `pipelines`, the others that it imports anywhere, also inside functions and for types."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not module.startswith("pipelines."):
            continue
        names = {unit_of(name) for name in dotted_imports(path.read_text()) if name.startswith("pipelines.")}
        graph.setdefault(unit_of(module), set()).update(names - {unit_of(module)})
    return graph


def dotted_imports(source: str) -> Iterator[str]:
    """Like `imported`, with the names that are imported from a package: `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_packages_of_pipelines_form_no_cycles() -> None:
    graph = import_graph()
    assert graph["pipelines.tracking"] >= {"pipelines.config", "pipelines.storage", "pipelines.model_card"}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({**graph, "pipelines.config": {"pipelines.tracking"}}).static_order())
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the packages


def file_graph() -> dict[str, set[str]]:
    """For each file, as a dotted name, the others of the project that it imports anywhere."""
    modules = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        names = dotted_imports(path.read_text())
        graph[module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys()
    return graph


def test_files_form_no_cycles() -> None:
    graph = file_graph()
    assert "pipelines.tracking.mlflow_backend.driver" in graph["pipelines.tracking.run"]
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


def test_evaluation_and_enhancement_do_without_training() -> None:
    graph = import_graph()
    for package in ("evaluation", "enhancement", "tracking", "trajectories", "pairs"):
        assert "pipelines.training" not in graph[f"pipelines.{package}"], package


def test_mlflow_is_loaded_by_those_that_use_it_only() -> None:
    """It takes as long to import as everything else together, and a training starts many processes."""
    modules = "training.distillation", "search.tune", "evaluation.evaluate", "enhancement.exporting", "tracking"
    code = f"import sys, {', '.join(f'pipelines.{name}' for name in modules)}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False).returncode == 0


def test_private_parts_of_mlflow_are_on_the_page_for_upgrades() -> None:
    page, seam = (ROOT / "docs" / "upgrading.md").read_text(), SEAMS["mlflow"]
    used = {name for path in FILES if name_of(path).startswith(seam) for name in imported(path.read_text())}
    private = {name for name in used if name.startswith("mlflow.")} - PUBLIC_MLFLOW
    assert private, "nothing to look for"
    monitors = "mlflow.system_metrics.metrics."
    assert [name for name in private if f"`{name.removeprefix(monitors)}" not in page.replace(monitors, "")] == []
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (mlflow,) = (text for text in requirements if text.startswith("mlflow"))
    assert f"`{mlflow}`" in page


def test_private_parts_of_ray_are_on_the_page_for_upgrades() -> None:
    page = (ROOT / "docs" / "upgrading.md").read_text()
    used = {name for path in FILES for name in dotted_imports(path.read_text()) if name.startswith("ray.")}
    private = {name for name in used if re.search(r"\._|\.execution\.", name)}
    assert private, "nothing to look for"
    assert [name for name in private if f"`{name}" not in page] == []
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (range_of_ray,) = (text.partition("]")[2] for text in requirements if text.startswith("ray["))
    assert f"`ray{range_of_ray}`" in page
