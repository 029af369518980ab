"""The networks that a teacher or student can be: one interface, and one table of its implementations."""

from collections.abc import Mapping
from typing import Any

from reddit_core.networks.film_unet import FilmUNet, FilmUNetConfig
from reddit_core.networks.interface import LocalLayer, Network, NetworkConfig, Prediction
from reddit_core.networks.local_curve import LocalCurve, LocalCurveConfig
from reddit_core.networks.sr3_unet import UNet, UNetConfig

__all__ = ["NETWORKS", "LocalLayer", "Network", "NetworkConfig", "Prediction", "build", "kind_of", "read_config"]

NETWORKS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "film-unet": (FilmUNetConfig, FilmUNet),
    "sr3-unet": (UNetConfig, UNet),
    "local-curve": (LocalCurveConfig, LocalCurve),
}
"""For each kind, by the name that weights files give it: the class of its config, and that of the network."""


def kind_of(config: NetworkConfig) -> str:
    """The kind of the network that a config describes."""
    return next(kind for kind, (config_class, _) in NETWORKS.items() if type(config) is config_class)


def build(config: NetworkConfig) -> Network:
    """The network that a config describes, freshly initialized from torch's default generator."""
    _, network_class = NETWORKS[kind_of(config)]
    network: Network = network_class(config)
    return network


def read_config(kind: str, values: Mapping[str, Any]) -> NetworkConfig:
    """A config from its fields as JSON has them, with lists for tuples.

    Raises:
        ValueError: if there is no such kind, or its config has no such fields or values.
    """
    if kind not in NETWORKS:
        raise ValueError(
            f"it holds a network of kind {kind!r}, but only {', '.join(NETWORKS)} are known; update this project"
        )
    config_class, _ = NETWORKS[kind]
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        config: NetworkConfig = config_class(**fields)
    except TypeError as error:
        raise ValueError(
            f"a network of kind {kind} is not described like this ({error}); update this project"
        ) from None
    return config
