"""What the parts of the service tell each other: a request's settings, its answer, and what the weights allow."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pipelines.config.serving import ServeConfig
from pipelines.formats import readable
from reddit_core.student import check_tone, sampling_steps
from reddit_core.weights import NetworkFile

Format = Literal["auto", "png", "jpeg", "webp", "tiff"]
MAX_SEED = 2**63 - 1


class RejectedRequestError(Exception):
    """A request that is answered with an error: status, one line for people, and further headers."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, " ".join(reason.split()), headers or {}


@dataclass(frozen=True, kw_only=True)
class Query:
    """Settings of a request.

    Attributes:
        brightness: mean luma of the result, in (0, 1); None is the service's.
        steps: sampling steps; 0 is the service's.
        seed: of the noise.
        format: of the result's file; `auto` keeps the photograph's.
    """

    brightness: float | None = None
    steps: int = 0
    seed: int = 0
    format: Format = "auto"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A replica's answer.

    Attributes:
        status: of HTTP.
        reason: one line, of an error.
        data: the file.
        media_type: of the file.
        seconds: that the network took.
        notes: what of the photograph could not be kept.
    """

    status: int = 200
    reason: str = ""
    data: bytes = b""
    media_type: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the service does, as `GET /settings` shows it."""

    steps: int
    steps_allowed: tuple[int, ...]
    brightness: float | None
    formats_read: tuple[str, ...]
    formats_written: tuple[str, ...]
    max_megabytes: float
    max_megapixels: float
    needs_token: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_offer(config: ServeConfig, file: NetworkFile, needs_token: bool) -> Offer:
    """The offer of weights under the service's settings.

    Raises:
        ValueError: if the weights do not say their steps or brightness, and the settings neither.
    """
    steps = sampling_steps(file, config.steps, config.weights)
    num_levels = file.schedule.num_steps
    return Offer(
        steps=steps,
        steps_allowed=tuple(n for n in range(1, config.max_steps + 1) if num_levels % n == 0),
        brightness=check_tone(file, **config.asked_tone),
        formats_read=readable(),
        formats_written=tuple(name for name in get_args(Format) if name != "auto"),
        max_megabytes=config.max_megabytes,
        max_megapixels=config.max_megapixels,
        needs_token=needs_token,
    )


def check_query(query: Query, offer: Offer) -> None:
    """Raises RejectedRequestError (422) for a setting that the service does not take."""
    if query.brightness is not None and not 0 < query.brightness < 1:
        reason = f"brightness is {query.brightness:g}, but must be auto, or a mean luma in (0, 1); 0.45 is usual"
        raise RejectedRequestError(422, reason)
    if query.steps and query.steps not in offer.steps_allowed:
        allowed = ", ".join(map(str, offer.steps_allowed))
        raise RejectedRequestError(
            422, f"steps is {query.steps}, but must be one of {allowed}; leave it out for the usual"
        )
    if not 0 <= query.seed <= MAX_SEED:
        raise RejectedRequestError(422, f"seed is {query.seed}, but must be between 0 and {MAX_SEED}")
