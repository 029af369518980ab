"""Which photographs there are, which of them are left to enhance, and where their results go."""

import json
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import formats, shards, storage
from pipelines.config.use import EnhanceConfig
from pipelines.redaction import redact
from pipelines.weights import load_hashed_network
from reddit_core.student import check_tone, sampling_steps

SETTINGS = "enhance.json"
COMPARISONS = "compare"


@dataclass(frozen=True)
class Work:
    """The work list of a run.

    Attributes:
        root: URL of the folder with the photographs.
        names: all photographs, relative to the root.
        missing: those without a result.
        not_read: the other files, with the reason.
        steps: sampling steps.
        settings: everything that decides the results; stored with them.
    """

    root: str
    names: Sequence[str]
    missing: Sequence[str]
    not_read: Mapping[str, str]
    steps: int
    settings: Mapping[str, Any]


def find_work(config: EnhanceConfig) -> Work:
    """Lists the source and what of it was enhanced before.

    Raises:
        ValueError: if there is no photograph, the weights cannot be used, or the output was made with others.
    """
    file, sha256 = load_hashed_network(config.weights)
    check_tone(file, **config.asked_tone)
    steps = sampling_steps(file, config.steps, config.weights)
    root, files = list_source(config)
    reasons = {name: formats.not_read(name) for name in files}
    names = [name for name in files if not reasons[name]]
    not_read = {name: reason for name, reason in reasons.items() if reason}
    if not names:
        name, reason = next(iter(not_read.items()))
        raise ValueError(f"{config.source} holds no photograph that is read; {name}: {reason}")
    settings = {
        "photographs": redact(root),
        "weights_sha256": sha256,
        "steps": steps,
        **{name: getattr(config, name) for name in ("seed", "tile", "overlap", "precision")},
        **config.asked_tone,
    }
    results = Counter(results_of(config, name)[0] for name in names)
    if twice := [result for result, count in results.items() if count > 1]:
        raise ValueError(f"two photographs of {config.source} have the result {twice[0]}; rename one of them")
    if config.writes_one_file:
        if len(files) > 1 or root == config.source:
            raise ValueError(f"output {config.output} is one file, but {config.source} is a folder; give a folder")
        return Work(root, names, names, not_read, steps, settings)
    present = set(storage.list_files(config.output))
    if SETTINGS in present:
        made = json.loads(storage.read_bytes(storage.join(config.output, SETTINGS)))
        shards.require_match(made, settings, f"what was enhanced at {config.output}")
    elif taken := present.intersection(results):
        raise ValueError(f"{config.output} holds a file {min(taken)}, and no job made it; give another folder")
    missing = [name for name in names if not set(results_of(config, name)) <= present]
    return Work(root, names, missing, not_read, steps, settings)


def list_source(config: EnhanceConfig) -> tuple[str, list[str]]:
    """The folder of the source, and the files below it by relative name; of a single file, its own folder and name.

    Raises:
        ValueError: if there is nothing, results would land among the photographs, or a name leaves the output.
    """
    source, output = storage.resolve(config.source), storage.resolve(config.output)
    files = storage.list_files(source)
    root = source if files else posixpath.dirname(source)
    if not files and not storage.exists(source):
        raise ValueError(f"there is nothing at {source}; give the URL of a photograph or of a folder of them")
    if output in (root, source) or (files and output.startswith(source + "/")):
        raise ValueError(
            f"output {output} lies in the folder of the photographs, whose names it would take; give another folder"
        )
    for name in files:
        storage.join(output, name)  # an object store's keys may hold any text
        if config.compare and name.startswith(f"{COMPARISONS}/"):
            raise ValueError(f"{name} lies where --compare puts its pictures; rename {COMPARISONS} at {source}")
    return root, files or [posixpath.basename(source)]


def is_one_photograph(config: EnhanceConfig) -> bool:
    """Whether the source is a file, and not a folder."""
    return bool(formats.format_of(config.source)) and not storage.list_files(config.source)


def results_of(config: EnhanceConfig, name: str) -> list[str]:
    """The result files of a photograph, relative to the output; that of a camera's RAW file is a TIFF."""
    result = f"{name}.tif" if formats.format_of(name) == "RAW" else name
    return [result, *([f"{COMPARISONS}/{name}.jpg"] if config.compare else [])]


def urls_of_results(config: EnhanceConfig, name: str) -> list[str]:
    """The URLs of a photograph's result and, with `--compare`, of its comparison."""
    if not config.writes_one_file:
        return [storage.join(config.output, result) for result in results_of(config, name)]
    stem = posixpath.splitext(config.output)[0]
    return [config.output, *([f"{stem}-compare.jpg"] if config.compare else [])]
