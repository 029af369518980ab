"""The state of source and output when an ingest starts: what is there, and what is new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import shards, storage
from pipelines.config.jobs import IngestConfig
from pipelines.config.parts import as_json
from pipelines.pairs import layouts, matching, ray_tasks, tables
from pipelines.pairs.index import IndexRow, read_index
from pipelines.pairs.matching import PairSource
from pipelines.pairs.ray_tasks import Darkening
from pipelines.redaction import redact
from pipelines.shards import Manifest
from pipelines.source_files import evenly

# Parts of a spec that say where a source lies. It may move: what it holds decides.
PLACES = ("source", "low", "normal", "splits")
MOST_COMPARED = 8


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The state of source and output when an ingest starts.

    Attributes:
        spec: everything that determines the content; recorded in the manifest.
        done: the finished dataset at the output, if there is one.
        known: its pairs.
        sources: the other pairs of the source, by `pair_id`.
        fixed: splits that the user gave, by `pair_id`.
        num_listed: pairs that the source holds, broken ones included.
        notes: what else a person has to know of the source, as facts of a report.
    """

    config: IngestConfig
    spec: Mapping[str, Any]
    done: Manifest | None
    known: Mapping[str, IndexRow]
    sources: Mapping[str, PairSource]
    fixed: Mapping[str, str]
    num_listed: int
    notes: Mapping[str, str]

    @property
    def num_gone(self) -> int:
        """Pairs of the dataset that the source no longer holds."""
        return len(self.known) - (self.num_listed - len(self.sources))

    @property
    def key(self) -> str:
        return shards.spec_key(self.spec)


def pair_spec(config: IngestConfig) -> dict[str, Any]:
    """Everything that determines a pair dataset's content; without credentials that a URL may carry."""
    urls = {name: redact(storage.resolve(getattr(config, name))) if getattr(config, name) else "" for name in PLACES}
    names = ("layout", "pattern", "validation_share", "split_seed", "pairs_per_shard")
    spec = {**urls, **{name: getattr(config, name) for name in names}, **shards.schema_spec("pairs")}
    if config.layout == "degrade":
        # As JSON gives it back, so that the spec of a manifest equals the one it was written from.
        spec |= {"degrade": as_json(config.degrade), "degrade_seed": config.degrade_seed}
    if config.allow_truncated:
        spec["allow_truncated"] = True
    return spec


def take_inventory(config: IngestConfig) -> Inventory:
    """Lists the source, and the pairs that the output already has.

    Raises:
        ValueError: if the source holds no pairs, the output was made with other settings, `--splits` names unknown
            pairs or contradicts the output, or the dataset to compare with (`--against`) is missing.
    """
    if config.against:
        shards.read_manifest(config.against, "pairs")
    spec = pair_spec(config)
    done = None
    known: dict[str, IndexRow] = {}
    if storage.exists(storage.join(config.output, shards.MANIFEST)):
        done = shards.read_manifest(config.output, "pairs")
        shards.require_match(without_places(done.spec), without_places(spec), config.output)
        known = read_index(config.output, done)
    found = layouts.list_pairs(config)
    listed = found.pairs
    if done and done.spec != spec:  # the source has moved
        check_same_pairs(config, known, listed)
        spec = dict(done.spec)
    fixed = fixed_splits(config, listed, known) if config.splits else {}
    sources = {pair.pair_id: pair for pair in listed if pair.pair_id not in known}
    return Inventory(
        config=config,
        spec=spec,
        done=done,
        known=known,
        sources=sources,
        fixed=fixed,
        num_listed=len(listed),
        notes=found.notes,
    )


def without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in PLACES}


def check_same_pairs(config: IngestConfig, known: Mapping[str, IndexRow], listed: Sequence[PairSource]) -> None:
    """Reads a few pairs that were ingested before from where the source is now.

    Raises:
        ValueError: if their pixels are not the same, or there are none.
    """
    common = [pair for pair in listed if pair.pair_id in known and not pair.problem]
    for pair in evenly(common, MOST_COMPARED):
        try:
            same = read_one(config, pair)["sha256"] == known[pair.pair_id].sha256
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{pair.pair_id} at {redact(pair.normal)} is not what {config.output} holds under this name; use "
                "another output for another source"
            )
    if known and not common:
        raise ValueError(
            f"{redact(config.source or config.low)} holds none of the pairs of {config.output}, such as {min(known)}; "
            "use another output for another source"
        )


def darkening_of(config: IngestConfig) -> Darkening | None:
    """The low-light model, for a source that has no low images."""
    return Darkening(config=config.degrade, seed=config.degrade_seed) if config.layout == "degrade" else None


def read_one(config: IngestConfig, pair: PairSource) -> dict[str, Any]:
    """A row of a pair shard, read in this process; raises a ValueError with the reason if the pair is unusable."""
    return ray_tasks.read_pair(pair, darkening_of(config), config.allow_truncated)


def fixed_splits(
    config: IngestConfig, listed: Sequence[PairSource], known: Mapping[str, IndexRow]
) -> Mapping[str, str]:
    """The splits of `--splits` by `pair_id`, which it may spell with other case or accents composed otherwise.

    Raises:
        ValueError: if it names unknown pairs, or contradicts what was ingested.
    """
    given, pair_ids = tables.read_splits(config.splits), [pair.pair_id for pair in listed]
    spelled = matching.unambiguous(given, pair_ids)
    fixed = {spelled.get(pair_id, pair_id): split for pair_id, split in given.items()}
    strangers = sorted(set(fixed) - set(pair_ids))
    if strangers:
        hint = matching.look_alikes(strangers, pair_ids).get(strangers[0], f"pair ids look like {pair_ids[0]!r}")
        raise ValueError(
            f"{config.splits} names {len(strangers)} pairs that the source does not hold, such as {strangers[0]!r}; "
            f"{hint}"
        )
    for pair_id, split in fixed.items():
        if pair_id in known and known[pair_id].split != split:
            raise ValueError(
                f"{config.splits} puts {pair_id} in {split}, but it was ingested as {known[pair_id].split}; "
                "use another output to draw the splits anew"
            )
    return fixed
