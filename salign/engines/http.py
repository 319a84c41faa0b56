"""Requests to a server, with retries where they may help, and errors that explain a failure.

What may pass (408, 409, 429, 5xx, time-outs, broken connections) is tried again after a growing pause; what refuses the
call itself or the caller is not.
"""

import asyncio
import json
import math
import os
import random
import re
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from salign.config import OpenAIEmbedder
from salign.config import OpenAIEngine as OpenAISection
from salign.errors import CallRejectedError, ConfigError, EngineError, EngineUnavailableError, SalignError
from salign.shown import redact

# These refuse one prompt; 401, 403 and 404 refuse whoever asks, or the model.
_REJECTED = (400, 413, 422)
_MAY_PASS = (408, 409, 429)  # and 5xx
_OVERLOADED = (429, 503)
# As OpenAI names it, and those who speak as it does.
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})

# Pauses of 0.75, 1.5, 3, 6 and 8 s, less up to a fifth: five retries bridge 15 s, in which a server is restarted.
FIRST_PAUSE_S, LONGEST_PAUSE_S, _JITTER = 0.75, 8.0, 0.2
_LONGEST_RETRY_AFTER_S = 60.0
# A call that is refused for load alone, while the server works for others, is tried this many times as often.
_PATIENCE = 10

# A list of models, or an error.
_MOST_BYTES = 4 << 20

# vLLM and llama.cpp close a connection that is idle for 5 s; a call that is sent at that moment would be lost.
_KEEP_ALIVE_S = 3.0

# The user and password of a proxy, which the environment names and aiohttp's errors quote.
_USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]*@")


class _MayPassError(Exception):
    """A failure that the next try may not have.

    `failure` is what the user is told if there is no next try, `busy` whether the server has too much to do, and
    `asked_pause_s` the pause that it asks for.
    """

    def __init__(self, failure: EngineError, *, busy: bool = False, asked_pause_s: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.busy = busy
        self.asked_pause_s = asked_pause_s


class Server:
    """One server: requests with retries, and what a user is told when they fail."""

    def __init__(
        self,
        section: OpenAISection | OpenAIEmbedder,
        name: str | None = None,
        api_key: str | None = None,
        setting: str = "engine",
    ) -> None:
        """Opens no connection yet.

        Args:
            section: Where it is and how it is called.
            name: Of whom an error about one call speaks; the server where there is none.
            api_key: The key of a server of our own; None reads the section's environment variable.
            setting: The section's place in a config.

        Raises:
            ConfigError: The key cannot be sent, or the environment's proxy cannot be used.
        """
        self._section = section
        self._setting = setting
        self._url = URL(section.base_url)
        self._key = (os.environ.get(section.api_key_env, "") if api_key is None else api_key).strip()
        self._key_name = section.api_key_env if api_key is None else "key"
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(
                f"the key in {self._key_name} contains characters that are not allowed in a key (such "
                "as a line break); set it again."
            )
        proxy = _proxy(section.base_url)
        self._where = f"the {setting.rpartition('.')[2]} at {section.base_url}"
        if proxy is not None:
            self._where += f" (through the environment's proxy {proxy.host}:{proxy.port})"
        self._name = name or self._where
        self._report_push_back: Callable[[], None] = _nobody_asks
        self._num_sent = self._num_answered = 0
        self._in_hand: dict[int, None] = {}  # requests without an answer yet, oldest first
        self._random = random.Random()  # when a call is made again is no result: it need not be the same again
        self._session = aiohttp.ClientSession(
            # The gate bounds the calls; waiting for a connection as well would look like a slow server.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=section.timeout_s),
            # a local server asks for no key, and some refuse a request without any
            headers={"Authorization": f"Bearer {self._key or 'none'}", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie may tie all calls to one of several replicas
            proxy=proxy,  # found once: looking at each call, as trust_env does, takes longer than the call
        )

    def on_push_back(self, report: Callable[[], None]) -> None:
        """As `PushesBack` has it: `report` is called for each answer 429 or 503 and for each time-out."""
        self._report_push_back = report

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: bytes | None = None, more_bytes: int = 0) -> bytes:
        """The body of the answer to a request.

        Args:
            method: HTTP's.
            path: Below `base_url`.
            body: JSON.
            more_bytes: How much longer than a list of models or an error the answer may be, unpacked.

        Raises:
            ConfigError: The key, the path or the model is refused.
            CallRejectedError: This request is refused.
            EngineError: No answer, after all retries; or one that is far too long.
        """
        most_bytes = _MOST_BYTES + more_bytes
        num_retries = self._section.num_retries
        num_tries = num_failures = 0
        seen: tuple[int, int] | None = None
        while True:
            num_tries += 1
            try:
                return await self._ask_once(method, path, body, num_tries, most_bytes)
            except _MayPassError as error:
                # Where there are many more calls than the server takes, each is refused several times before the gate
                # has found the limit. While the server works for others, this one is not lost.
                if not (error.busy and seen is not None and self._has_worked_since(*seen)):
                    num_failures += 1
                if num_failures > num_retries or num_tries > _PATIENCE * num_retries:
                    raise error.failure from error.__cause__
                seen = self._num_sent, self._num_answered
                await asyncio.sleep(pause_s(num_tries, error.asked_pause_s, self._random.random()))

    def _has_worked_since(self, num_sent: int, num_answered: int) -> bool:
        """Whether the server has answered since, or has a request in hand that was sent before: one not refused."""
        return self._num_answered > num_answered or next(iter(self._in_hand), num_sent + 1) <= num_sent

    async def _ask_once(self, method: str, path: str, body: bytes | None, number: int, most_bytes: int) -> bytes:
        """The `number`th try."""
        self._num_sent += 1
        ticket = self._num_sent
        self._in_hand[ticket] = None
        try:
            async with self._session.request(method, self._url / path, data=body) as response:
                answer = await read_bounded(response, most_bytes)
        except TimeoutError as error:
            self._report_push_back()
            less = "" if isinstance(self._section, OpenAIEmbedder) else f"lower {self._setting}.max_in_flight, or "
            failure = EngineUnavailableError(
                f"{self._where} did not answer within {self._setting}.timeout_s = {self._section.timeout_s:g} s, "
                f"{number} times. Is it overloaded? Then {less}raise {self._setting}.timeout_s; what is complete is "
                "kept."
            )
            raise _MayPassError(failure) from error
        except TooLongError:
            raise EngineError(
                f"{self._where} sends more than {most_bytes:,} bytes for one answer, unpacked, which no reply to such "
                f"a request has. Is {self._setting}.base_url an OpenAI-compatible server?"
            ) from None
        except aiohttp.ClientError as error:
            failure = EngineUnavailableError(
                f"{self._where} is unreachable ({self.short(str(error) or type(error).__name__)}), {number} times. "
                f"Start it, or set {self._setting}.base_url to where it listens; what is complete is kept."
            )
            raise _MayPassError(failure) from error
        finally:
            del self._in_hand[ticket]
        status = response.status
        if status < 400:
            self._num_answered += 1
            return answer
        if status == 429 and _is_spent(answer):
            raise EngineError(
                f"{self._where} has no credit left for this key: {self._said(status, answer)}. Add some, or put "
                f"another key into {self._section.api_key_env}; what is complete is kept."
            )
        if status in _OVERLOADED:
            self._report_push_back()
        if status in _MAY_PASS or status >= 500:
            kind = EngineUnavailableError if status in (*_MAY_PASS, *_OVERLOADED) else EngineError
            raise _MayPassError(
                kind(f"{self._where} failed after {number - 1} retries: {self._said(status, answer)}"),
                busy=status in _OVERLOADED,
                asked_pause_s=pause_asked_for(response.headers),
            )
        raise self._refusal(status, answer)

    def _refusal(self, status: int, answer: bytes) -> SalignError:
        if status in (401, 403):
            return ConfigError(
                f"{self._where} refuses the key (HTTP {status}). Put a valid one into the environment variable "
                f"{self._section.api_key_env} ({self._setting}.api_key_env names it)."
            )
        if status == 404:
            return ConfigError(
                f"{self._where} does not know the model or the path: {self._said(status, answer)}. Check base_url "
                "and model."
            )
        if status in _REJECTED:
            return CallRejectedError(f"{self._name} refused a call: {self._said(status, answer)}")
        return EngineError(f"{self._where} failed: {self._said(status, answer)}")

    def _said(self, status: int, answer: bytes) -> str:
        """What the server says to a status, without the JSON around it."""
        said: Any = answer
        try:
            said = json.loads(answer)
            for name in ("error", "message"):
                said = said[name] if isinstance(said, dict) and name in said else said
        except ValueError:
            pass
        return self.short(f"HTTP {status}: {said.decode('utf-8', 'replace') if isinstance(said, bytes) else said}")

    def short(self, said: str | bytes) -> str:
        """What is said, on one line, as a file can take it, without the key and a proxy's password."""
        raw = said if isinstance(said, bytes) else said.encode("utf-8", "replace")
        text = _USER_OF_URL.sub("", " ".join(raw.decode("utf-8", "replace").split()))
        return redact(text.replace(self._key, f"<{self._key_name}>") if self._key else text)[:300]


class TooLongError(Exception):
    """An answer is longer than any should be."""


async def read_bounded(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body of an answer, unpacked as it comes.

    Raises:
        TooLongError: It has more bytes; the rest is not read.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > most_bytes:
            response.close()
            raise TooLongError
    return bytes(body)


def _nobody_asks() -> None:
    """Of push-backs before anybody wants to know of them."""


def _is_spent(answer: bytes) -> bool:
    """Whether a 429 means an account without credit, which no pause cures, and not load."""
    try:
        said = json.loads(answer)
    except ValueError:
        return False
    error = said.get("error") if isinstance(said, dict) else None
    return isinstance(error, dict) and not _SPENT.isdisjoint(
        value for value in (error.get("code"), error.get("type")) if isinstance(value, str)
    )


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine, where no proxy has a part in it."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _proxy(url: str) -> URL | None:
    """The proxy that the environment names for a URL (https_proxy, all_proxy, ... and no_proxy); none for loopback."""
    parts = urlsplit(url)
    if is_loopback(url) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named:
        return None
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise ConfigError(
            f"the environment names a proxy for {url} that cannot be used: {proxy.scheme}://{proxy.host}. Name an "
            f"HTTP proxy in {parts.scheme}_proxy, or put {parts.hostname} into no_proxy."
        )
    return proxy


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
