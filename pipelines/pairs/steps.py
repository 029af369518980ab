"""The steps of `ingest` from a source to shards: list, survey, split by scene, plan, write.

The plan of shards is a pure function of the source's contents and the config, so a rerun does exactly what
is missing: pairs that a finished dataset already has stay in their shards, and new ones get shards of their own.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipelines import shards, storage
from pipelines.pairs import ray_tasks, scenes
from pipelines.pairs.inventory import Inventory, darkening_of
from pipelines.pairs.ray_tasks import CHANGED, READERS, SURVEY, IngestTask, ShardResult, Surveyed
from pipelines.pairs.scenes import Assignment, Member
from pipelines.redaction import redact

QUARANTINE = "quarantine.jsonl"
# Bounds a shard, and so a task's memory, when photographs are large; low images weigh less than normal ones.
MOST_NORMAL_BYTES = 64 * 2**20


def run_survey(inventory: Inventory) -> dict[str, Surveyed]:
    """Surveys the normal images of all new pairs, each once; what a killed job has surveyed is not read again."""
    config = inventory.config
    known: dict[str, Surveyed] = {}
    folder = storage.join(config.output, SURVEY)
    for found in read_survey(folder, inventory.key):
        pair = inventory.sources.get(found.pair_id)
        # Broken images are read again, because they may have been fixed since.
        if pair and pair.normal == found.normal and not found.problem:
            known[pair.pair_id] = replace(found, low=pair.low)
    missing = [
        Surveyed(pair_id=pair.pair_id, low=pair.low, normal=pair.normal)
        for pair in inventory.sources.values()
        if not pair.problem and pair.pair_id not in known
    ]
    tasks = [
        IngestTask(name=f"{inventory.key}-{digest(part)}", members=part)
        for part in chunks(missing, config.pairs_per_shard)
    ]
    survey = partial(ray_tasks.survey, output=config.output, allow_truncated=config.allow_truncated)
    for rows in ray_tasks.run_ingest_tasks(survey, ray_tasks.parse_surveyed, tasks, "reading normal images"):
        known.update((row.pair_id, row) for row in rows)
    return known


def read_survey(folder: str, key: str) -> Iterator[Surveyed]:
    """Everything that jobs with this key have surveyed."""
    files = set(storage.list_files(storage.join(folder, "shards")))
    names = sorted(name.removesuffix(".json") for name in files if name.startswith(key) and name.endswith(".json"))
    finished = [name for name in names if f"{name}.arrow" in files]
    with ThreadPoolExecutor(READERS) as pool:
        for table in pool.map(lambda n: shards.read_shard(folder, shards.read_commit_record(folder, n)), finished):
            yield from (Surveyed(**row) for row in table.to_pylist())


def chunks(rows: Iterable[Surveyed], size: int) -> Iterator[tuple[Surveyed, ...]]:
    """Consecutive pairs in groups of at most `size`, and of at most `MOST_NORMAL_BYTES` of normal images."""
    part: list[Surveyed] = []
    for row in rows:
        if part and (len(part) == size or sum(r.file_bytes for r in part) + row.file_bytes > MOST_NORMAL_BYTES):
            yield tuple(part)
            part = []
        part.append(row)
    if part:
        yield tuple(part)


def digest(members: Iterable[Surveyed], *more: str) -> str:
    """12 hex digits that name a list of pairs: the same for the same pairs with the same normal images."""
    names = [f"{member.pair_id}\n{member.file_bytes} {member.file_crc32}" for member in members]
    return hashlib.sha256("\n".join([*names, *more]).encode()).hexdigest()[:12]


def assign_splits(inventory: Inventory, usable: Sequence[Surveyed]) -> Assignment:
    committed = [
        Member(
            pair_id=row.pair_id,
            labels=scenes.scene_labels(row.normal_sha256, row.layout_scene),
            split=row.split,
            committed=True,
        )
        for row in inventory.known.values()
    ]
    new = [
        Member(
            pair_id=row.pair_id,
            labels=scenes.scene_labels(row.normal_sha256, inventory.sources[row.pair_id].scene),
            split=inventory.fixed.get(row.pair_id, inventory.sources[row.pair_id].split),
        )
        for row in usable
    ]
    return scenes.assign([*committed, *new], inventory.config.validation_share, inventory.config.split_seed)


def plan_pair_shards(inventory: Inventory, usable: Sequence[Surveyed], splits: Mapping[str, str]) -> list[IngestTask]:
    """The shards of the new pairs: per split, ordered by `pair_id`, numbered on from the existing ones."""
    config = inventory.config
    by_split: dict[str, list[Surveyed]] = defaultdict(list)
    for row in sorted(usable, key=lambda row: row.pair_id):
        if row.pair_id in splits:
            by_split[splits[row.pair_id]].append(row)
    numbers = Counter(entry.split for entry in inventory.done.shards) if inventory.done else Counter[str]()
    tasks = []
    for split, rows in sorted(by_split.items()):
        for number, part in enumerate(chunks(rows, config.pairs_per_shard), start=numbers[split]):
            name = f"{split}-{number:05d}-{digest(part, inventory.key)}"
            tasks.append(IngestTask(name=name, members=part, split=split))
    return tasks


def run_shards(inventory: Inventory, tasks: Sequence[IngestTask]) -> list[ShardResult]:
    """Writes the planned shards and returns their results in order; shards that a killed job finished are read back.

    A shard that lacks a broken pair is written again, because the pair may have been fixed since.
    """
    config, output = inventory.config, inventory.config.output
    results = {result.name: result for result in finished_shards(output, tasks)}
    for result in list(results.values()):
        if result.broken:
            storage.delete(storage.join(output, "shards", f"{result.name}.json"))
            del results[result.name]
    missing = [task for task in tasks if task.name not in results]
    write_pairs = partial(
        ray_tasks.write_pairs,
        output=output,
        darkening=darkening_of(config),
        allow_truncated=config.allow_truncated,
    )
    for result in ray_tasks.run_ingest_tasks(write_pairs, ray_tasks.parse_result, missing, "writing pairs"):
        results[result.name] = result
        if CHANGED in result.broken.values():
            clear_folder(storage.join(output, SURVEY))  # it is outdated
    return [results[task.name] for task in tasks]


def clear_folder(url: str, keep: Collection[str] = ()) -> None:
    """Deletes the files below a folder, except those whose names without extension are in `keep`."""
    names = [name for name in storage.list_files(url) if name.rpartition(".")[0] not in keep]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda name: storage.delete(storage.join(url, name)), names))


def finished_shards(output: str, tasks: Sequence[IngestTask]) -> list[ShardResult]:
    files = set(storage.list_files(storage.join(output, "shards")))
    names = [task.name for task in tasks if {f"{task.name}.json", f"{task.name}.arrow"} <= files]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda name: ray_tasks.read_result(output, name), names))


def write_quarantine(inventory: Inventory, broken: Mapping[str, str], left_out: Mapping[str, str]) -> None:
    """`quarantine.jsonl`: every pair that is in no shard, with the reason."""
    lines = []
    for pair_id, reason in sorted({**broken, **left_out}.items()):
        pair = inventory.sources[pair_id]
        kind = "left out" if pair_id in left_out else "broken"
        row = {
            "pair_id": pair_id,
            "kind": kind,
            "reason": reason,
            "low": redact(pair.low),
            "normal": redact(pair.normal),
        }
        lines.append(json.dumps(row) + "\n")
    storage.write_bytes(storage.join(inventory.config.output, QUARANTINE), "".join(lines).encode())


def check_share(inventory: Inventory, broken: Mapping[str, str]) -> None:
    """Raises a ValueError if more than `max_bad` of the pairs are broken."""
    share, most = len(broken) / inventory.num_listed, inventory.config.max_bad
    if share > most:
        pair_id, reason = min(broken.items())
        url = storage.join(inventory.config.output, QUARANTINE)
        raise ValueError(
            f"{len(broken)} of {inventory.num_listed} pairs are broken ({share:.1%}), but max_bad is {most:.1%}; the "
            f"first is {pair_id}: {reason}; see {url}, fix them, or raise --max-bad"
        )
