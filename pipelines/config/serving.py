"""Configuration of the job that serves a student over HTTP."""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from pipelines.config.parts import require
from pipelines.config.use import StudentConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(StudentConfig):
    """Serve a student over HTTP: a page at /, and POST /enhance for programs."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface of the machine."""
    port: int = 8000
    """TCP port to listen on."""
    token: Literal["auto", "yes", "no"] = "auto"
    """Whether requests need the token in the variable REDDIT_SERVE_TOKEN; auto: where that is set. A host other than
    loopback needs one, or an explicit no."""
    queue: int = 16
    """Requests that are worked on or wait at a time; those beyond are answered 503."""
    batch: int = 1
    """Photographs of one size and settings that the network takes at once, up to a tile's pixels together. More than 1
    helps GPUs only, and may round a few pixels differently than a photograph alone."""
    max_megabytes: float = 64.0
    """Largest upload."""
    max_megapixels: float = 50.5
    """Largest photograph."""
    max_steps: int = 16
    """Most sampling steps that a request may ask for."""
    timeout: float = 300.0
    """Seconds within which an upload must be there, and after that its answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.port < 2**16, f"port is {self.port}, but must be in 1 to 65535; 8000 is usual")
        for name in ("queue", "batch", "max_steps"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("max_megabytes", "max_megapixels", "timeout"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}, but must be above 0")
        require(
            self.steps <= self.max_steps,
            f"steps is {self.steps}, above max_steps of {self.max_steps}; raise the latter",
        )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
