"""How many requests are let in at a time, and when those that are not should come back."""

import contextlib
import math
import time
from collections.abc import Iterator

from pipelines.serving.messages import RejectedRequestError

# Weight of the newest request in the mean of their seconds.
NEWEST = 0.2


class Admission:
    """Lets in `most` requests at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.inside, self.mean_seconds = most, 0, 0.0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Context manager, for as long as the request is inside.

        Raises:
            RejectedRequestError: 503 with Retry-After, the seconds that requests took lately.
        """
        if self.inside >= self.most:
            retry_after = max(1, math.ceil(self.mean_seconds))
            reason = (
                f"{self.inside} photographs are being worked on, and no more may wait; try again in {retry_after} s"
            )
            raise RejectedRequestError(503, reason, {"Retry-After": str(retry_after)})
        self.inside += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self.mean_seconds += NEWEST * (time.monotonic() - started - self.mean_seconds)
