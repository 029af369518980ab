"""Enhancing many photographs: a pool of actors (Ray Data)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import ray.data

from pipelines import failures
from pipelines.cluster import actor_pool, check_gpus, device_of, rounds
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhancer import Enhancer
from pipelines.enhancement.work import Work
from pipelines.restart_notice import without_restart_notice

# One photograph is enhanced while its predecessor is encoded and its successor read and decoded.
CALLS_PER_ACTOR = 3


def enhance_on_ray(config: EnhanceConfig, work: Work) -> Iterator[Mapping[str, Any]]:
    """The rows of `Enhancer.process` for what is missing, as they are finished.

    Raises:
        ValueError: if there are too few GPUs.
    """
    check_gpus(config.compute)
    return _rows(config, work)


def _rows(config: EnhanceConfig, work: Work) -> Iterator[Mapping[str, Any]]:
    parts = (replace(work, names=(), missing=part, not_read={}, unusable={}) for part in rounds(work.missing))
    with failures.user_errors("enhancement", kept="what was enhanced is kept"), without_restart_notice():
        for part in parts:
            yield from ({**row, "name": part.missing[row["id"]]} for row in enhancing(config, part).iter_rows())


def enhancing(config: EnhanceConfig, work: Work) -> ray.data.Dataset:
    """The actor pool over the photographs of a round."""
    return ray.data.range(len(work.missing), override_num_blocks=len(work.missing)).map_batches(
        Enhancer,
        fn_constructor_args=(config, work, device_of(config.compute)),
        batch_size=1,
        **actor_pool(config.compute, calls=CALLS_PER_ACTOR, in_flight=CALLS_PER_ACTOR + 1),
    )
