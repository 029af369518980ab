"""The noise schedule: one float64 `alpha_bar` table, N-step grids on it, and random noise levels."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

LevelDraw = Literal["interval", "node", "released"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Linear betas and the table that follows from them (Ho et al. 2020, eq. 4).

    `alpha_bar[k]` is the product of the first k factors `1 - beta`, so `alpha_bar[0] = 1` is clean.
    There are `num_steps + 1` betas, as in the released code; N-step grids use indices 0 to `num_steps`.

    Raises:
        ValueError: if the betas are not increasing within (0, 1), or there are fewer than two steps.
    """

    num_steps: int = 512
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps is {self.num_steps}, but must be at least 2; the paper uses 512")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(
                f"betas run from {self.beta_start} to {self.beta_end}, but must rise within (0, 1); "
                "the paper uses 1e-4 to 2e-2"
            )

    @cached_property
    def alpha_bar(self) -> Float64[Tensor, " table"]:
        """`num_steps + 2` values, strictly falling from 1."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.num_steps + 1, dtype=torch.float64)
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])

    @cached_property
    def sqrt_alpha_bar(self) -> Float64[Tensor, " table"]:
        """Signal level at each table index, falling from 1; the network's noise-level input."""
        return self.alpha_bar.sqrt()

    def grid(self, num_nodes: int) -> list[int]:
        """Table indices of the N-step grid, clean end first: node i is at index `i * num_steps / N`.

        Raises:
            ValueError: if `num_nodes` does not divide the table.
        """
        if num_nodes < 1 or self.num_steps % num_nodes:
            raise ValueError(
                f"a grid of {num_nodes} steps does not divide the schedule's {self.num_steps} steps; "
                "choose a power of two such as 16, 8, 4, 2 or 1"
            )
        stride = self.num_steps // num_nodes
        return [node * stride for node in range(num_nodes + 1)]

    def draw_levels(
        self, nodes: Int[Tensor, "*b"], num_nodes: int, draw: LevelDraw, generator: torch.Generator | None
    ) -> Float64[Tensor, "*b"]:
        """The `sqrt_alpha_bar` of each node (0 is the clean end) of the `num_nodes` grid.

        `node` is the table entry of the node. `interval` draws uniformly between the node and its next cleaner
        neighbour on the grid; node 0 has none and stays exactly clean. `released` does the same, but
        wraps around at node 0 as the released code does: its level comes from between 1 and the
        noisiest node.
        """
        level = self.sqrt_alpha_bar[torch.tensor(self.grid(num_nodes))]
        if draw == "node":
            return level[nodes]
        wrapped = num_nodes if draw == "released" else 0
        neighbour = torch.where(nodes > 0, nodes - 1, wrapped)
        weight = torch.rand(nodes.shape, dtype=torch.float64, generator=generator)
        return level[nodes] + weight * (level[neighbour] - level[nodes])


def sigma_of(sqrt_alpha_bar: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """`sigma = sqrt(1 - a^2)`, exactly 0 at a = 1."""
    return (1 - sqrt_alpha_bar.square()).clamp(min=0).sqrt()
