"""The documents: their links lead somewhere, their commands parse, and the files that they name are there."""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
IGNORED = {".venv", ".pytest_cache", ".git", "runs", "build"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if not IGNORED & set(path.relative_to(ROOT).parts))
# Pages about the present; dated pages of results name the files of their day.
CURRENT = [page for page in PAGES if not re.match(r"\d{4}-\d{2}-\d{2}", page.name)]
SOURCES = [path for folder in ("reddit_core", "pipelines", "jobs", "tests") for path in (ROOT / folder).rglob("*.py")]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "JOB = Job(" in path.read_text())

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
JOB_COMMAND = re.compile(r"python (?:/app/)?jobs/(\w+)\.py((?:\\\n|[^\n`])*)")
MAKE_COMMAND = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
NAMED_FILE = re.compile(r"(?:reddit_core|pipelines|jobs|tests|infra|docs|weights|\.github)/[\w./-]*")

# What a reader puts a name of his own for, or makes himself.
PLACEHOLDER = re.compile(r"/(?:X|NAME|YOURS)\b|/\.env$")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, no punctuation, dashes for spaces."""
    headings = HEADING.findall(BLOCK.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[str]:
    yield from (
        link for link in LINK.findall(BLOCK.sub("", text)) if "://" not in link and not link.startswith("mailto")
    )


def documented_commands() -> Iterator[tuple[str, str]]:
    """(job, flags) of every whole command in the current pages; those with dots only show a shape."""
    for page in CURRENT:
        for _, block in BLOCK.findall(page.read_text()):
            for job, flags in JOB_COMMAND.findall(block):
                if "..." not in flags and job in JOBS:
                    yield job, re.sub(r"\s#.*", "", flags)


def test_there_is_something_to_look_at() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/method.md", "infra/README.md"} <= {name_of(page) for page in CURRENT}
    assert {job for job, _ in documented_commands()} >= {"ingest", "train_teacher", "precompute", "distill", "enhance"}
    assert anchors("# A `b` c: d, e!\n```\n# no\n```\n") == {"a-b-c-d-e"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists() and file.is_relative_to(ROOT), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    for code in CODE.findall(BLOCK.sub("", page.read_text())):
        for name in NAMED_FILE.findall(code) if NAMED_FILE.match(code) else []:
            if not PLACEHOLDER.search(name):
                assert (ROOT / name).exists(), f"{name} is not there"


@pytest.mark.parametrize(
    ("job", "flags"),
    [pytest.param(*command, id=f"{command[0]}-{i}") for i, command in enumerate(documented_commands())],
)
def test_the_documented_commands_are_understood(
    job: str, flags: str, check_job_command: Callable[[str, str], None]
) -> None:
    check_job_command(job, flags)


def test_the_documented_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in CURRENT:
        assert set(MAKE_COMMAND.findall(page.read_text())) <= targets, name_of(page)


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_documented_python_imports_what_there_is(page: Path) -> None:
    for language, block in BLOCK.findall(page.read_text()):
        for node in ast.walk(ast.parse(block)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("reddit_core", "pipelines"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_python_of_the_readme_enhances_a_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for language, block in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python")
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    Image.new("RGB", (30, 20), (9, 8, 7)).save(tmp_path / "night.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert Image.open(tmp_path / "enhanced.png").size == (30, 20)


def test_no_file_cites_a_document_that_is_not_here() -> None:
    citing = re.compile(r"\b[D]ESIGN\b|\b[R]EVIEW\.md\b|\b[R]AY\.md\b")
    assert [name_of(path) for path in (*PAGES, *SOURCES) if citing.search(path.read_text())] == []


def test_the_hooks_use_the_ruff_of_the_constraints() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={repository['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()
