"""What a person should know of pairs that are usable, but may not be what was meant: facts of ingest's report."""

from collections.abc import Iterable

import torch

from pipelines.pairs.ray_tasks import ShardResult, Surveyed
from reddit_core.pixels import SSIM_WINDOW
from reddit_core.tone import tone_curve

ROUNDING = 1e-9


def small_pairs(surveyed: Iterable[Surveyed]) -> dict[str, str]:
    """Pairs that later jobs train on, but cannot judge as a whole; empty if there are none."""
    small = [row.pair_id for row in surveyed if min(row.width, row.height) < SSIM_WINDOW]
    return count(f"pairs below {SSIM_WINDOW} pixels a side, which have no SSIM and no LPIPS", small)


def bright_lows(results: Iterable[ShardResult]) -> dict[str, str]:
    """Pairs whose low image is clearly the brighter one, as of swapped folders; empty if there are none.

    The tone curve bends downwards, so its mean over an image is at most that of the image's mean.
    """
    columns = {pair_id: row for result in results for pair_id, row in result.pairs.items()}
    luma = torch.tensor([row["normal_luma"] for row in columns.values()], dtype=torch.float64)
    most = dict(zip(columns, (tone_curve(luma) + ROUNDING).tolist(), strict=True))
    brighter = [pair_id for pair_id, row in columns.items() if row["low_curve"] > most[pair_id]]
    return count("pairs whose low image is brighter than its normal one, as if they were swapped", brighter)


def count(name: str, pair_ids: Iterable[str]) -> dict[str, str]:
    found = sorted(pair_ids)
    return {name: f"{len(found)}, such as {found[0]}"} if found else {}
