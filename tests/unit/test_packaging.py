"""The installed distribution holds every package of the repository, and the files that they read."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]
TOP = ("jobs", "pipelines", "reddit_core")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_found() -> None:
    folders = {path.parent for top in TOP for path in (ROOT / top).rglob("*.py")}
    expected = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    rule = SETUPTOOLS["packages"]["find"]
    assert rule["namespaces"] is False
    assert set(find_packages(str(ROOT), include=rule["include"])) == expected


def test_every_other_file_of_a_package_is_declared() -> None:
    tracked = {
        path
        for top in TOP
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    declared = {
        path
        for package, patterns in SETUPTOOLS.get("package-data", {}).items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert declared == tracked
