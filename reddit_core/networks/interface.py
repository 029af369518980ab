"""The interface of all networks; code that builds, trains, tiles, samples or exports one relies on it alone."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Prediction = Literal["eps", "v", "x"]
"""Meaning of a network's output: noise, `v = a eps - sigma x_0` (Salimans and Ho 2022), or the clean image `x_0`."""


@runtime_checkable
class NetworkConfig(Protocol):
    """The shape of a network: a frozen dataclass of numbers, strings and tuples of them, kept with the weights."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def prediction(self) -> Prediction:
        """Meaning of the output."""

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""

    @property
    def takes_gain(self) -> bool:
        """Whether the network is told the exposure gain, and so the brightness that its result shall have."""

    def without_dropout(self) -> "NetworkConfig":
        """The same network with dropout off."""

    def key_entries(self) -> dict[str, Any]:
        """Entries that this config adds to the specification whose hash is a cache's key."""


class Network(nn.Module, ABC):
    """Maps a noisy image, its noise level and the low-light image to `config.prediction`."""

    config: NetworkConfig

    if TYPE_CHECKING:

        def __call__(
            self,
            z: Float[Tensor, "b 3 h w"],
            sqrt_alpha_bar: Float[Tensor, " b"],
            *,
            low: Float[Tensor, "b 3 h w"],
            gain: Float[Tensor, " b"] | None = None,
        ) -> Float[Tensor, "b 3 h w"]: ...

    @abstractmethod
    def forward(
        self,
        z: Float[Tensor, "b 3 h w"],
        sqrt_alpha_bar: Float[Tensor, " b"],
        *,
        low: Float[Tensor, "b 3 h w"],
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Runs the network.

        Args:
            z: noisy image.
            sqrt_alpha_bar: noise level in [0, 1] of each image; 1 is clean.
            low: low-light image in [-1, 1].
            gain: factor on the tone curve of each whole image (`tone.make_tone`); ignored unless `config.takes_gain`.

        Raises:
            ValueError: if height or width is no multiple of `config.size_multiple`, or a gain is needed and not given.
        """

    @property
    def untiled_pixels(self) -> int:
        """Pixels of the largest photograph that is enhanced in one piece unless told otherwise: about 4 GB at most."""
        return 1024 * 1024

    def check_size(self, z: Float[Tensor, "b 3 h w"]) -> None:
        """Raises a ValueError if height or width is no multiple of `config.size_multiple`."""
        height, width = z.shape[-2:]
        if height % self.config.size_multiple or width % self.config.size_multiple:
            raise ValueError(
                f"the image has {height} x {width} pixels, but the network needs multiples of "
                f"{self.config.size_multiple}; crop to one, or go through sampler.enhance, which pads"
            )

    def needed_gain(self, gain: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
        """The gain of a network that takes one; raises a ValueError if it is not given."""
        if gain is None:
            raise ValueError("this network needs the gain of each image; give gain=, from tone.make_tone")
        return gain

    @abstractmethod
    def global_layers(self) -> dict[str, nn.Module]:
        """Layers whose output at one position depends on the whole image, by name: norms, pools, attention.

        Tiles share the statistics of these (`shared_statistics.py`). A layer within another of them belongs to it.
        """


class LocalLayer(nn.Module):
    """Base of a network's own layers without children whose output depends on near positions only, or on no image."""
