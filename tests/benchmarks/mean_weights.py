"""The mean of the weights of networks that were trained on from one (Wortsman et al. 2022, *Model soups*).

    python tests/benchmarks/mean_weights.py OUTPUT 0.65=detail/teacher.safetensors 0.35=rollout/teacher.safetensors

It lies between them in what they trade, such as PSNR for sharpness, and often above the line between. Brightness,
contrast and schedule are those of the first.
"""

from dataclasses import replace
from typing import Annotated

import torch
import tyro

from pipelines import storage
from pipelines.weights import load_network, save_network


def mean_weights(
    output: Annotated[str, tyro.conf.Positional], parts: Annotated[list[str], tyro.conf.Positional]
) -> None:
    """Writes the weighted mean.

    Args:
        output: URL of the mean.
        parts: of the mean, each as SHARE=URL; shares add up to 1.

    Raises:
        ValueError: if the shares do not, or the networks differ.
    """
    split = [part.partition("=") for part in parts]
    shares, files = [float(share) for share, _, _ in split], [load_network(url) for _, _, url in split]
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the shares add up to {sum(shares):g}, but must to 1; divide each by that")
    if any(file.network.config != files[0].network.config for file in files):
        raise ValueError("the networks differ in their settings; take those that were trained on from one")
    states = [file.network.state_dict() for file in files]
    weighted = {
        name: torch.stack([share * state[name] for share, state in zip(shares, states, strict=True)]).sum(dim=0)
        for name in states[0]
    }
    files[0].network.load_state_dict(weighted)
    # Validation figures are of one part.
    facts = {name: value for name, value in files[0].facts.items() if name != "validation"}
    facts["mean_of_shares"] = shares
    save_network(storage.resolve(output), replace(files[0], facts=facts))


if __name__ == "__main__":
    tyro.cli(mean_weights)
