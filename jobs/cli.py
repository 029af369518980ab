"""What every job does with its command line: preset, TOML file, flags, dry run, and errors for people.

A preset and a TOML file are turned into flags that stand before the user's own, so that all three go
through the same checks, and the later one wins.
"""

import contextlib
import io
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import tyro
from rich.console import Console

from pipelines import cluster, reporting
from pipelines.config import presets
from pipelines.redaction import redact
from pipelines.reporting import Report

USAGE_ERROR, INTERRUPTED = 2, 130
# The lines and corners of the boxes that the flag parser draws around its errors; dashes where stdout is not UTF-8.
BOX = re.compile(r"[\u2500-\u257f]+|-{4,}")

Config = TypeVar("Config")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job(Generic[Config]):
    """A job's name, config class, what it would do, and how it is done; both return a report to show.

    A local Ray has its dashboard only where `dashboard` says so.
    """

    name: str
    config: type[Config]
    plan: Callable[[Config], Report]
    run: Callable[[Config], Report]
    dashboard: bool = False


@dataclass(frozen=True)
class Sources:
    """What every job takes besides its config: other sources of settings, whether to stop after the plan, and which
    local paths all machines of a cluster see."""

    preset: str = ""
    config: str = ""
    dry_run: bool = False
    shared_folder: str = ""


def main(job: Job[Config], argv: Sequence[str] | None = None) -> None:
    """Parses, plans or runs, and reports; bad input is one line on stderr and exit status 2."""
    try:
        sources, flags = take_sources(list(sys.argv[1:] if argv is None else argv))
        config = parse(job, sources, flags)
        cluster.start_ray(dashboard=job.dashboard)
        cluster.reject_local_urls(config, sources.shared_folder)
        reporting.show(job.plan(config) if sources.dry_run else job.run(config))
    except (ValueError, OSError) as error:
        logger.debug("the job failed", exc_info=True)
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to go on", INTERRUPTED)


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {redact(message)}", markup=False)
    raise SystemExit(status)


def take_sources(argv: list[str]) -> tuple[Sources, list[str]]:
    """Separates the flags that every job takes from those of the job's config."""
    help_flags = [word for word in argv if word in ("-h", "--help")]
    sources, rest = tyro.cli(Sources, args=[w for w in argv if w not in help_flags], return_unknown_args=True)
    return sources, rest + help_flags


def parse(job: Job[Config], sources: Sources, flags: Sequence[str]) -> Config:
    """The config from preset, TOML file and flags, the later ones winning.

    Raises:
        ValueError: if the preset or a flag is unknown, the file is no TOML, or a value is refused.
        SystemExit: after --help.
    """
    known = presets.PRESETS.get(job.name, {})
    if sources.preset and sources.preset not in known:
        raise ValueError(f"preset {sources.preset!r} is unknown to {job.name}; it has: {', '.join(known) or 'none'}")
    settings = dict(known.get(sources.preset, {}))
    file_settings = dict(flatten(read_toml(sources.config))) if sources.config else {}
    words = [*as_flags(settings), *as_flags(file_settings), *flags]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(job.config, prog=f"python jobs/{job.name}.py", description=description(job), args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(one_line(errors.getvalue())) from None


def one_line(box: str) -> str:
    """The text of the flag parser's box, without its frame, on one line."""
    return " ".join(BOX.sub(" ", box).split())


def description(job: Job[Config]) -> str:
    names = ", ".join(presets.PRESETS.get(job.name, {})) or "none"
    return (
        f"{job.config.__doc__}\n\nAlso: --preset NAME ({names}); --config FILE.toml with the same names as the "
        "flags; --dry-run shows the plan and stops; --shared-folder FOLDER says that all machines of a cluster mount "
        "it, so that paths below it may be used. Flags win over the file, the file over the preset."
    )


def read_toml(path: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML ({error}); mend that line") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_flags(settings: Mapping[str, Any]) -> Iterator[str]:
    """Dotted settings as command-line words; booleans as --name and --no-name."""
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parent, _, leaf = flag.rpartition(".")
            yield f"--{flag}" if value else f"--{parent}.no-{leaf}" if parent else f"--no-{leaf}"
        elif isinstance(value, (list, tuple)):
            yield from (f"--{flag}", *(str(part) for part in value))
        else:
            yield from (f"--{flag}", str(value))
