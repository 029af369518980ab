"""Image pairs from any URL to pair shards (`ingest`)."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import reporting, shards, storage
from pipelines.config.jobs import IngestConfig
from pipelines.pairs import remarks
from pipelines.pairs.index import IndexRow, read_index, write_index
from pipelines.pairs.inventory import Inventory, read_one, take_inventory
from pipelines.pairs.matching import PairSource
from pipelines.pairs.ray_tasks import (
    DIGITS,
    PIECES,
    SURVEY,
    ShardResult,
    Surveyed,
    usable_cpus,
)
from pipelines.pairs.scenes import Assignment
from pipelines.pairs.steps import (
    QUARANTINE,
    assign_splits,
    check_share,
    clear_folder,
    plan_pair_shards,
    run_shards,
    run_survey,
    write_quarantine,
)
from pipelines.reporting import Report
from pipelines.shards import Manifest
from pipelines.source_files import evenly
from reddit_core.brightness import LEAST_LUMA
from reddit_core.tone import contrast_features, fit_contrast, tone_gain

DUPLICATES = "duplicates.jsonl"
# The manifest lists the pairs of every split up to this many; the index always does.
MOST_LISTED_PAIRS = 10_000
MOST_MEASURED_PAIRS = 8


def ingest(config: IngestConfig) -> Report:
    """Writes the pair dataset, or the part of it that is missing.

    Raises:
        ValueError: if there is nothing to read, or more than `max_bad` of the pairs are broken; what was written
            is kept, and a rerun resumes from it.
        OSError: if storage fails for longer than retries last; a rerun resumes.
    """
    started = time.perf_counter()
    inventory = take_inventory(config)
    if inventory.done is not None and not inventory.sources:
        clear(config.output, inventory.done)
        return finish(config, summary(inventory, inventory.done, "already done"))
    storage.check_writable(config.output)
    surveyed = run_survey(inventory)
    usable = [row for row in surveyed.values() if not row.problem]
    broken = broken_before_writing(inventory, surveyed)
    assignment = assign_splits(inventory, usable)
    quarantine(inventory, broken, assignment)
    results = run_shards(inventory, plan_pair_shards(inventory, usable, assignment.splits))
    for result in results:
        broken.update(result.broken)
    quarantine(inventory, broken, assignment)
    manifest = commit(inventory, results, surveyed, assignment, broken)
    num_new, seconds = sum(len(result.pairs) for result in results), time.perf_counter() - started
    figures: dict[str, Any] = {"new pairs": num_new, "seconds": seconds, "pairs per second": num_new / seconds}
    figures |= {**remarks.small_pairs(usable), **remarks.bright_lows(results)}
    return finish(config, summary(inventory, manifest, "ingested" if num_new else "already done", figures))


def broken_before_writing(inventory: Inventory, surveyed: Mapping[str, Surveyed]) -> dict[str, str]:
    """The pairs that listing and survey found to be broken: `pair_id` to reason."""
    listed = {pair.pair_id: pair.problem for pair in inventory.sources.values() if pair.problem}
    return {**listed, **{row.pair_id: row.problem for row in surveyed.values() if row.problem}}


def quarantine(inventory: Inventory, broken: Mapping[str, str], assignment: Assignment) -> None:
    """Writes the pairs that are in no shard, with their reasons; raises a ValueError if too many are broken."""
    write_quarantine(inventory, broken, assignment.left_out)
    check_share(inventory, broken)


def commit(
    inventory: Inventory,
    results: Sequence[ShardResult],
    surveyed: Mapping[str, Surveyed],
    assignment: Assignment,
    broken: Mapping[str, str],
) -> Manifest:
    """Writes index and manifest, and deletes the files that only an unfinished job needs."""
    output = inventory.config.output
    new = [result.entry for result in results if result.entry]
    entries = [*(inventory.done.shards if inventory.done else ()), *new]
    if not entries:
        raise ValueError(f"none of the {inventory.num_listed} pairs is usable; see {storage.join(output, QUARANTINE)}")
    rows = dict(inventory.known)
    for result in results:
        for pair_id, columns in result.pairs.items():
            rows[pair_id] = IndexRow(
                pair_id=pair_id,
                split=assignment.splits[pair_id],
                scene=assignment.scenes[pair_id],
                shard=result.name,
                normal_sha256=surveyed[pair_id].normal_sha256,
                layout_scene=inventory.sources[pair_id].scene,
                **columns,
            )
    manifest = Manifest(
        kind="pairs",
        spec=inventory.spec,
        shards=tuple(entries),
        facts=manifest_facts(rows.values(), len(broken), len(assignment.left_out)),
    )
    write_index(output, rows.values())
    shards.write_manifest(output, manifest)
    clear(output, manifest)
    return manifest


def manifest_facts(rows: Iterable[IndexRow], broken: int, left_out: int) -> dict[str, Any]:
    """Pairs and scenes per split; brightness (mean luma of the normal images, [0, 1]) and the fit of their contrast.

    They do not depend on how often the job was interrupted.
    """
    by_split: dict[str, list[IndexRow]] = defaultdict(list)
    for row in rows:
        by_split[row.split].append(row)
    splits: dict[str, dict[str, Any]] = {
        split: {
            "pairs": len(members),
            "scenes": len({row.scene for row in members}),
            "brightness": math.fsum(row.normal_luma for row in members) / len(members),
            "contrast": contrast_of(members),
        }
        for split, members in sorted(by_split.items())
    }
    if sum(map(len, by_split.values())) <= MOST_LISTED_PAIRS:
        for split, members in by_split.items():
            splits[split]["pair_ids"] = sorted(row.pair_id for row in members)
    return {"splits": splits, "broken": broken, "left_out": left_out}


def contrast_of(members: Sequence[IndexRow]) -> list[float]:
    """The weights that predict the contrast of these pairs' normal images (`tone.fit_contrast`)."""
    ordered = sorted(members, key=lambda row: row.pair_id)
    curve, deviation, brightness, contrast = torch.tensor(
        [[getattr(row, name) for row in ordered] for name in shards.TONE_COLUMNS], dtype=torch.float64
    )
    features = contrast_features(brightness, deviation, tone_gain(brightness.clamp(min=LEAST_LUMA), curve))
    return [round(weight, DIGITS) for weight in fit_contrast(features.numpy(), contrast.numpy())]


def clear(output: str, manifest: Manifest) -> None:
    """Deletes the files of unfinished jobs, and shards that the manifest does not list."""
    clear_folder(storage.join(output, "shards"), keep={entry.name for entry in manifest.shards})
    for folder in (SURVEY, PIECES):
        clear_folder(storage.join(output, folder))


def summary(inventory: Inventory, manifest: Manifest, title: str, figures: Mapping[str, Any] | None = None) -> Report:
    """The job's report: pairs, scenes and shards per split, and the pairs that are in no shard."""
    output, counts = inventory.config.output, manifest.facts
    facts = {"key": manifest.key, "broken": counts["broken"], "left out": counts["left_out"], **inventory.notes}
    if counts["broken"] or counts["left_out"]:
        facts["reasons"] = storage.join(output, QUARANTINE)
    if inventory.num_gone:
        facts["no longer in the source (kept)"] = inventory.num_gone
    rows = [
        {
            "split": split,
            "pairs": split_counts["pairs"],
            "scenes": split_counts["scenes"],
            "shards": sum(entry.split == split for entry in manifest.shards),
            "MB": sum(entry.bytes for entry in manifest.shards if entry.split == split) / 1e6,
        }
        for split, split_counts in counts["splits"].items()
    ]
    title = f"{title}: {manifest.num_rows} pairs in {output}"
    return Report(title=title, rows=rows, facts={**facts, **(figures or {})}, url=output)


def finish(config: IngestConfig, report: Report) -> Report:
    """Saves the report; adds what the dataset has in common with the one to compare with, if one is given."""
    report = with_duplicates(config, report) if config.against else report
    reporting.save(report)
    return report


def with_duplicates(config: IngestConfig, report: Report) -> Report:
    """Writes the pairs that two datasets have in common, and adds their numbers to the report."""
    found = duplicates_between(config.output, config.against)
    url = storage.join(config.output, DUPLICATES)
    storage.write_bytes(url, "".join(json.dumps(row) + "\n" for row in found).encode())
    whole = sum(row["same"] == "pair" for row in found)
    facts = {
        "pairs also in the other dataset": whole,
        "pairs that share only the normal image with it": len(found) - whole,
        "duplicates": url,
    }
    return Report(title=report.title, rows=report.rows, facts={**report.facts, **facts}, url=report.url)


def duplicates_between(url_a: str, url_b: str) -> list[dict[str, str]]:
    """Pairs of two datasets with the same pixels, whatever their names and encodings.

    Returns:
        Rows of `a` and `b` (pair ids), `split_a`, `split_b`, and `same`: `pair`, or `normal` when only the normal
        images are the same. A pair of `a` comes once, with its closest partner in `b`.
    """
    first, second = (read_index(url, shards.read_manifest(url, "pairs")) for url in (url_a, url_b))
    by_pair = {row.sha256: row for row in reversed(second.values())}
    by_normal = {row.normal_sha256: row for row in reversed(second.values())}
    found = []
    for row in first.values():
        whole = by_pair.get(row.sha256)
        other = whole or by_normal.get(row.normal_sha256)
        if other is not None:
            same = "pair" if whole else "normal"
            found.append(
                {"a": row.pair_id, "b": other.pair_id, "split_a": row.split, "split_b": other.split, "same": same}
            )
    return found


def plan_ingest(config: IngestConfig) -> Report:
    """The plan of `ingest` (`--dry-run`): reads a few pairs to estimate bytes and time, and writes nothing."""
    inventory = take_inventory(config)
    whole = [pair for pair in inventory.sources.values() if not pair.problem]
    sample = measure(config, whole)
    cpus = usable_cpus()
    facts = {
        "already ingested": len(inventory.known),
        "to ingest": len(whole),
        "broken as listed": len(inventory.sources) - len(whole),
        **inventory.notes,
        "shards, about": math.ceil(len(whole) / config.pairs_per_shard),
        "MB, about": sample.bytes_per_pair * len(whole) / 1e6,
        "minutes, about": sample.seconds_per_pair * len(whole) / cpus / 60,
        "measured on": f"{sample.num_pairs} pairs; {cpus} CPUs",
    }
    by_split: dict[str, int] = defaultdict(int)
    for pair in whole:
        by_split[inventory.fixed.get(pair.pair_id, pair.split) or "drawn by scene: train or validation"] += 1
    rows = [{"split": split, "pairs": count} for split, count in sorted(by_split.items())]
    return Report(
        title=f"plan: {len(whole)} pairs of layout {config.layout} into {config.output}", rows=rows, facts=facts
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Cost of a few pairs, spread over the source, on one CPU; broken ones are not counted."""

    num_pairs: int
    bytes_per_pair: float
    seconds_per_pair: float


def measure(config: IngestConfig, pairs: Sequence[PairSource]) -> Sample:
    """Reads and checks up to `MOST_MEASURED_PAIRS` pairs as the job would, and measures that."""
    sizes, seconds = [], 0.0
    for pair in evenly(pairs, MOST_MEASURED_PAIRS):
        started = time.perf_counter()
        try:
            row = read_one(config, pair)
        except ValueError:
            continue
        seconds += time.perf_counter() - started
        sizes.append(len(row["low"]) + len(row["normal"]))
    count = max(1, len(sizes))
    return Sample(num_pairs=len(sizes), bytes_per_pair=sum(sizes) / count, seconds_per_pair=seconds / count)
