"""Which photographs there are, which of them are left to enhance, and where their results go."""

import json
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines import formats, shards, storage
from pipelines.config.use import EnhanceConfig
from pipelines.redaction import redact
from pipelines.retries import PERMANENT_ERRORS
from pipelines.source_files import Listing, list_source
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
        unusable: photographs and folders that cannot be read by their names, with the reason.
        not_users: the images that programs made, in words; empty if there are none.
        single: URL of the only photograph, which may have a query after its name; empty for a folder.
    """

    root: str
    names: Sequence[str]
    missing: Sequence[str]
    not_read: Mapping[str, str]
    steps: int
    settings: Mapping[str, Any]
    unusable: Mapping[str, str] = field(default_factory=dict)
    not_users: str = ""
    single: str = ""

    @property
    def num_photographs(self) -> int:
        """Photographs and folders, those that cannot be used included."""
        return len(self.names) + len(self.unusable)

    @property
    def facts(self) -> dict[str, str]:
        """What else lies below the source, for a report."""
        not_users = {"images that programs made, left out": self.not_users} if self.not_users else {}
        return {**not_users, **{f"not read: {name}": reason for name, reason in self.not_read.items()}}

    def url_of(self, name: str) -> str:
        """URL of a photograph."""
        return self.single or storage.join(self.root, name)


def find_work(config: EnhanceConfig) -> Work:
    """Lists the source and what of it was enhanced before.

    Raises:
        ValueError: if there is no photograph, the weights cannot be used, or the output was made with others.
    """
    file, sha256 = load_hashed_network(config.weights)
    check_tone(file, **config.asked_tone)
    steps = sampling_steps(file, config.steps, config.weights)
    root, listing = list_photographs(config)
    reasons = {name: formats.not_read(name) for name in (*listing.images, *listing.others)}
    names = [name for name in listing.images if not reasons[name]]
    not_read = {name: reason for name, reason in reasons.items() if reason}
    if not names and not listing.unusable:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(not_read.items())[:1])
        raise ValueError(f"{config.source} holds no photograph that is read; {found or listing.describe_not_users()}")
    settings = {
        "weights_sha256": sha256,
        "steps": steps,
        **{name: getattr(config, name) for name in ("seed", "tile", "overlap", "precision")},
        **config.asked_tone,
        **({"allow_truncated": True} if config.allow_truncated else {}),
    }
    results = Counter(results_of(config, name)[0] for name in names)
    if twice := [result for result, count in results.items() if count > 1]:
        raise ValueError(f"two photographs of {config.source} have the result {twice[0]}; rename one of them")
    single = "" if root == storage.resolve(config.source) else storage.resolve(config.source)
    work = Work(
        root,
        names,
        names,
        not_read,
        steps,
        {**settings, "photographs": redact(root), "samples": {}},
        unusable=listing.unusable,
        not_users=listing.describe_not_users() or "",
        single=single,
    )
    if config.writes_one_file:
        if not single:
            raise ValueError(f"output {config.output} is one file, but {config.source} is a folder; give a folder")
        return work
    present = set(storage.list_files(config.output))
    if SETTINGS in present:
        made = json.loads(storage.read_bytes(storage.join(config.output, SETTINGS)))
        place, samples = made.pop("photographs", ""), made.pop("samples", {})
        shards.require_match(made, settings, f"what was enhanced at {config.output}")
        if place != redact(root) and (samples or present.intersection(results)):
            check_same_photographs(config, work, samples)
        work = replace(work, settings={**work.settings, "samples": samples})
    elif taken := present.intersection(results):
        raise ValueError(f"{config.output} holds a file {min(taken)}, and no job made it; give another folder")
    return replace(work, missing=[name for name in names if not set(results_of(config, name)) <= present])


def list_photographs(config: EnhanceConfig) -> tuple[str, Listing]:
    """The folder of the source and what lies below it; of a single photograph, its own folder and name.

    Raises:
        ValueError: if there is nothing, or results would land among the photographs.
    """
    source, output = storage.resolve(config.source), storage.resolve(config.output)
    single = storage.is_file(source)
    root, name = storage.split_file(source) if single else (source, "")
    if single:
        listing = Listing(images=[name]) if formats.format_of(name) else Listing(others=[name])
    else:
        listing = list_source(source, tuple(formats.FORMAT_OF))
    if listing.is_empty and not storage.exists(source):
        raise ValueError(f"there is nothing at {source}; give the URL of a photograph or of a folder of them")
    if output in (root, source) or (not single and output.startswith(source + "/")):
        raise ValueError(
            f"output {output} lies in the folder of the photographs, whose names it would take; give another folder"
        )
    taken = [name for name in listing.images if config.compare and name.startswith(f"{COMPARISONS}/")]
    if taken:
        raise ValueError(f"{taken[0]} lies where --compare puts its pictures; rename {COMPARISONS} at {source}")
    return root, listing


def check_same_photographs(config: EnhanceConfig, work: Work, samples: Mapping[str, str]) -> None:
    """Raises a ValueError if photographs that were enhanced have changed, or none of them is there.

    Args:
        config: of the job.
        work: the photographs, which have moved.
        samples: SHA-256 of some that were enhanced, by name.
    """
    present = samples.keys() & set(work.names)
    changed = sorted(name for name in present if hash_of(work.url_of(name)) != samples[name])
    if changed or not present:
        which = f"{changed[0]} is not the one" if changed else "there is none of those"
        raise ValueError(
            f"{config.output} holds results of other photographs than {redact(config.source)}: {which} that was "
            "enhanced; give another output"
        )


def hash_of(url: str) -> str:
    """SHA-256 of a photograph; empty if it cannot be read."""
    try:
        return storage.sha256(url)
    except PERMANENT_ERRORS:
        return ""


def write_settings(config: EnhanceConfig, work: Work) -> None:
    """Stores the settings beside the results."""
    storage.write_bytes(storage.join(config.output, SETTINGS), json.dumps(work.settings, indent=1).encode())


def is_one_photograph(config: EnhanceConfig) -> bool:
    """Whether the source is a file, and not a folder."""
    return bool(formats.format_of(storage.split_file(config.source)[1])) and storage.is_file(config.source)


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
