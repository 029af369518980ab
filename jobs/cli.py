"""The command line of every job: preset, TOML file, flags, dry run, and errors in one line.

A preset and a TOML file become flags that are put before the user's own, so that all three pass the same checks, and
the last one wins.
"""

import contextlib
import io
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import tyro

from pipelines import reporting
from pipelines.config import presets
from pipelines.console import warn
from pipelines.redaction import printable, redact
from pipelines.reporting import Report
from pipelines.texts import read_text

USAGE_ERROR, INTERRUPTED = 2, 130
# The lines and corners of the boxes that the flag parser draws around its errors; dashes where stdout is not UTF-8.
BOX = re.compile(r"[\u2500-\u257f]+|-{4,}")

Config = TypeVar("Config")
logger = logging.getLogger(__name__)


def always(_: object) -> bool:
    return True


@dataclass(frozen=True)
class Job(Generic[Config]):
    """A job.

    Attributes:
        name: of its file in jobs/, without `.py`.
        config: config class, from which the flags are made.
        plan: reports what would be done (`--dry-run`), and writes nothing.
        run: does it, and returns the report to show.
        dashboard: whether a local Ray is started with its dashboard.
        serves: whether it answers requests: a local Ray then puts no object on a disk, and lowers no priority.
        needs_ray: whether what the config asks for runs on Ray.
    """

    name: str
    config: type[Config]
    plan: Callable[[Config], Report]
    run: Callable[[Config], Report]
    dashboard: bool = False
    serves: bool = False
    needs_ray: Callable[[Config], bool] = always


@dataclass(frozen=True)
class Sources:
    """Flags that every job takes besides its config.

    Attributes:
        preset: name of a preset of the job; empty is none.
        config: path or URL of a TOML file with settings; empty is none.
        dry_run: show the plan and stop.
        shared_folder: a folder that all machines of a cluster mount.
    """

    preset: str = ""
    config: str = ""
    dry_run: bool = False
    shared_folder: str = ""


def main(job: Job[Config], argv: Sequence[str] | None = None) -> None:
    """Parses the command line, plans or runs the job, and shows its report.

    A ValueError or OSError becomes one line on standard error and exit status 2; Ctrl-C exit status 130.
    """
    try:
        sources, flags = take_sources(list(sys.argv[1:] if argv is None else argv))
        config = parse(job, sources, flags)
        if job.needs_ray(config):
            start_ray(job, config, sources)
        reporting.show(job.plan(config) if sources.dry_run else job.run(config))
    except (ValueError, OSError) as error:
        logger.debug("the job failed", exc_info=True)
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to resume", INTERRUPTED)


def start_ray(job: Job[Config], config: Config, sources: Sources) -> None:
    """Starts or joins Ray for a job."""
    from pipelines import cluster  # noqa: PLC0415 - imports Ray, which takes seconds

    cluster.start_ray(dashboard=job.dashboard, serves=job.serves)
    cluster.reject_local_urls(config, sources.shared_folder)


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Prints an error without credentials on standard error, and exits."""
    warn(f"error: {printable(redact(message))}")
    raise SystemExit(status)


def take_sources(argv: list[str]) -> tuple[Sources, list[str]]:
    """Splits the words into `Sources` and the flags of the job's config, which keep `--help`."""
    help_flags = [word for word in argv if word in ("-h", "--help")]
    sources, rest = tyro.cli(Sources, args=[w for w in argv if w not in help_flags], return_unknown_args=True)
    return sources, rest + help_flags


def parse(job: Job[Config], sources: Sources, flags: Sequence[str]) -> Config:
    """The config from preset, TOML file and flags; the last one wins.

    Raises:
        ValueError: if the preset or a flag is unknown, the file is no TOML, or a value is rejected.
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
    """The text in the flag parser's box on one line, without the frame."""
    return " ".join(BOX.sub(" ", box).split())


def description(job: Job[Config]) -> str:
    """The text above the flags in `--help`."""
    names = ", ".join(presets.PRESETS.get(job.name, {})) or "none"
    return (
        f"{job.config.__doc__}\n\nAlso: --preset NAME ({names}); --config FILE.toml with the same names as the "
        "flags; --dry-run shows the plan and stops; --shared-folder FOLDER says that all machines of a cluster mount "
        "it, so that paths below it may be used. Flags win over the file, the file over the preset."
    )


def read_toml(url: str) -> Mapping[str, Any]:
    """The tables of a TOML file; raises ValueError if it is missing or not valid."""
    try:
        return tomllib.loads(read_text(url))
    except FileNotFoundError:
        raise ValueError(f"config is {url}, but there is no such file; give the path or URL of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{url} is not valid TOML ({error}); fix that line") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested tables."""
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
