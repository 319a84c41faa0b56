"""When a request is sent, and when again: pauses after a failure, and the pace that a limit on the rate asks for."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Pauses of 0.75, 1.5, 3, 6, 8, 8 ... s, less up to a fifth.
FIRST_PAUSE_S, LONGEST_PAUSE_S, _JITTER = 0.75, 8.0, 0.2
_LONGEST_RETRY_AFTER_S = 60.0
# How far below the rate that was seen requests go at first, by how much faster after each answer, and how much of the
# past counts.
_MARGIN, _FASTER, _MEMORY_S = 0.95, 0.002, 60.0


def pause_s(num_tries: int, asked_pause_s: float | None, chance: float) -> float:
    """How long to wait before the next try.

    Args:
        num_tries: Tries so far.
        asked_pause_s: What the server asks for.
        chance: In [0, 1): not all who failed at once are to try again at once.
    """
    jitter = _JITTER * chance
    if asked_pause_s is not None:
        return asked_pause_s * (1 + jitter)  # not earlier
    return min(FIRST_PAUSE_S * 2.0 ** min(num_tries - 1, 10), LONGEST_PAUSE_S) * (1 - jitter)


def pause_asked_for(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks for (seconds or a date; some servers give milliseconds as well); None if nothing."""
    try:
        if "retry-after-ms" in headers:
            pause_s = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" in headers:
            asked = headers["retry-after"].strip()
            if asked.replace(".", "", 1).isdigit():
                pause_s = float(asked)
            else:
                pause_s = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        else:
            return None
    except (ValueError, TypeError):  # neither; or a date without its zone
        return None
    return min(max(pause_s, 0.0), _LONGEST_RETRY_AFTER_S) if math.isfinite(pause_s) else None


class Pace:
    """Requests at the rate of a server's token bucket, which is learnt from its refusals.

    A server that allows so many requests a minute answers 429 with the seconds until there is room again (Retry-After).
    All requests then wait, not the refused one alone, for each that is sent too early counts as well; after that they
    go one by one, at the rate at which the bucket was seen to fill: what was answered between refusals, each of which
    says that it is empty, over the time. Each answer brings the pace a little beyond. Without refusals nothing waits.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._line = asyncio.Lock()
        self._is_limited = False
        self._interval_s = 0.0
        self._next = 0.0  # when the next request may go
        # Since the last time that the bucket was empty, and before that, but for what it held at the very first.
        self._since, self._num_answered = now(), 0
        self._seconds = self._answers = 0.0

    async def turn(self) -> None:
        """Waits for the next turn; returns at once where there is no limit."""
        if not self._is_limited:
            return
        async with self._line:
            while (wait := self._next - self._now()) > 0:
                await asyncio.sleep(wait)
            self._next = self._now() + self._interval_s

    def answered(self) -> None:
        """Notes an answer."""
        if self._now() >= self._since:  # what was on its way before the refusal says nothing of what comes after
            self._num_answered += 1
        self._interval_s *= 1 - _FASTER

    def limited(self, pause_s: float) -> None:
        """Notes a refusal for the rate, and the pause that it asks for."""
        now = self._now()
        resume = now + pause_s
        if now >= self._since:  # the first of those that were sent at once
            self._learn(resume - self._since)
        self._is_limited = True
        self._since = max(self._since, resume)
        self._next = max(self._next, resume)

    def _learn(self, seconds: float) -> None:
        if not self._is_limited:  # a full bucket, which tells little of how fast it fills: a first guess
            self._interval_s = seconds / max(self._num_answered, 1)
        else:
            self._seconds += seconds
            self._answers += self._num_answered
            self._interval_s = self._seconds / max(self._answers, 0.5) / _MARGIN
            if self._seconds > _MEMORY_S:  # a limit may change
                self._seconds, self._answers = self._seconds / 2, self._answers / 2
        self._num_answered = 0
