"""Released `.pth` weights, converted once into safetensors that record everything a `.pth` leaves open."""

from dataclasses import asdict, replace
from typing import Any

from pipelines import reporting, shards, storage
from pipelines.config.use import ConvertConfig
from pipelines.reporting import Report
from pipelines.weights import load_hashed_network, load_network, save_network
from reddit_core.weights import NetworkFile, is_pth

WEIGHTS = "weights.safetensors"
# The first bytes, by which a .pth is told from safetensors.
HEAD_BYTES = 16


def convert(config: ConvertConfig) -> Report:
    """Writes `weights.safetensors`; a second run with the same file and settings finds it done.

    Raises:
        ValueError: if the weights are no released `.pth` or do not fit, or the output holds those of another file.
    """
    file, done = read(config)
    if not done:
        storage.check_writable(config.output)
        save_network(storage.join(config.output, WEIGHTS), file)
    report = describe(config, file, f"{'Already converted' if done else 'Converted'}: {config.output}")
    reporting.save(report)
    return report


def plan_convert(config: ConvertConfig) -> Report:
    """The network that would be written; writes nothing."""
    file, done = read(config)
    return describe(config, file, f"Plan of convert: {'already done' if done else config.output}")


def read(config: ConvertConfig) -> tuple[NetworkFile, bool]:
    """The network with the facts that are recorded of it, and whether it has been written before.

    Raises:
        ValueError: as `convert`.
    """
    file, sha256 = load_hashed_network(config.weights, config.norm_groups)
    if not is_pth(storage.read_range(config.weights, 0, HEAD_BYTES)):
        raise ValueError(
            f"weights is {config.weights}, which every job reads as it is; give the URL of a released .pth"
        )
    file.schedule.grid(config.steps or 1)
    facts: dict[str, Any] = {"converted_from_sha256": sha256} | ({"num_steps": config.steps} if config.steps else {})
    url = storage.join(config.output, WEIGHTS)
    done = storage.exists(url)
    if done:
        there = load_network(url)
        made = {**there.facts, **there.network.config.key_entries()}
        shards.require_match(made, {**facts, "norm_groups": config.norm_groups}, url)
    return replace(file, facts=facts), done


def describe(config: ConvertConfig, file: NetworkFile, title: str) -> Report:
    """The network's shape and schedule."""
    facts = {
        "weights": storage.join(config.output, WEIGHTS),
        "parameters": sum(parameter.numel() for parameter in file.network.parameters()),
        "network": asdict(file.network.config),
        "schedule": asdict(file.schedule),
        **file.facts,
    }
    return Report(title=title, facts=facts, url=config.output)
