"""Requests to a server, with retries where they may help, and errors that explain a failure.

What may pass (408, 409, 429, 5xx, time-outs, broken connections) is tried again after a growing pause; what refuses the
call itself or the caller is not. A server that nobody reaches is waited for by the clock, as it may be starting again.
"""

import asyncio
import logging
import os
import random
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from salign.config import OpenAIEmbedder
from salign.config import OpenAIEngine as OpenAISection
from salign.engines.pacing import Pace, pause_asked_for, pause_s
from salign.engines.refusals import Refusal, refusal_in, refusal_in_success
from salign.errors import CallRejectedError, ConfigError, EngineError, EngineUnavailableError, SalignError
from salign.shown import redact

logger = logging.getLogger(__name__)

# These refuse one prompt; 401, 403 and 404 refuse whoever asks, or the model.
_REJECTED = (400, 413, 422)
_MAY_PASS = (408, 409, 429)  # and 5xx
_OVERLOADED = (429, 503)
# The server, or what stands before it, says that nobody is there; 503 may be load as well.
_AWAY = (502, 503, 504)

# A call that is refused for load alone, while the server works for others, is tried this many times as often.
_BUSY_TRIES = 10
# A server that says nothing for so long is spoken of.
SAY_AFTER_S = 10.0

# A list of models, or an error.
_MOST_BYTES = 4 << 20

# vLLM and llama.cpp close a connection that is idle for 5 s; a call that is sent at that moment would be lost.
_KEEP_ALIVE_S = 3.0

# A machine that is gone without a word: a new connection to it, and one that a call waits on, are known to be broken
# after 30 s and after 30 + 6 * 10 s.
_CONNECT_S = 30.0
_PROBES = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}

# The user and password of a proxy, which the environment names and aiohttp's errors quote.
_USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]*@")


class _MayPassError(Exception):
    """A failure that the next try may not have.

    `failure` is what the user is told if there is no next try, `busy` whether the server has too much to do, `away`
    whether it may be that nobody is there, `limited` whether it allows so many calls a minute, and `asked_pause_s` the
    pause that it asks for.
    """

    def __init__(
        self,
        failure: EngineError,
        *,
        busy: bool = False,
        away: bool = False,
        limited: bool = False,
        asked_pause_s: float | None = None,
    ) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.busy = busy
        self.away = away
        self.limited = limited
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
        self._urls: dict[str, URL] = {}  # of each path: making one takes as long as writing a request
        self._key = (os.environ.get(section.api_key_env, "") if api_key is None else api_key).strip()
        self._key_name = section.api_key_env if api_key is None else "key"
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(
                f"the key in {self._key_name} contains characters that are not allowed in a key (such "
                "as a line break); set it again."
            )
        proxy = None if api_key is not None else _proxy(section.base_url)
        self._where = f"the {setting.rpartition('.')[2]} at {section.base_url}"
        if proxy is not None:
            self._where += f" (through the environment's proxy {proxy.host}:{proxy.port})"
        self._name = name or self._where
        self._report_push_back: Callable[[], None] = _nobody_asks
        self._num_sent = self._num_answered = 0
        self._in_hand: dict[int, None] = {}  # requests without an answer yet, oldest first
        self._silent_since: float | None = None
        self._has_said = False
        self._pace = Pace()
        self._random = random.Random()  # when a call is made again is no result: it need not be the same again
        self._session = aiohttp.ClientSession(
            # The gate bounds the calls; waiting for a connection as well would look like a slow server.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, socket_factory=_probed_socket),
            timeout=aiohttp.ClientTimeout(total=section.timeout_s, sock_connect=_CONNECT_S),
            # a local server asks for no key, and some refuse a request without any
            headers={"Authorization": f"Bearer {self._key or 'none'}", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie may tie all calls to one of several replicas
            proxy=proxy,  # found once: looking at each call, as trust_env does, takes longer than the call
        )

    def on_push_back(self, report: Callable[[], None]) -> None:
        """As `PushesBack` has it: `report` is called for each answer 429 or 503 and for each time-out."""
        self._report_push_back = report

    async def close(self) -> None:
        """Closes the connections."""
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
            await self._pace.turn()
            num_tries += 1
            try:
                answer = await self._ask_once(method, path, body, num_tries, most_bytes)
            except _MayPassError as error:
                busy = error.busy and num_tries <= _BUSY_TRIES * num_retries and self._has_worked_since(seen)
                # One that finds nobody while others are answered is at fault itself.
                lost = error.away and (seen is None or self._num_answered == seen[1])
                if not (busy or ((lost or error.limited) and self._is_patient())):
                    num_failures += 1
                if num_failures > num_retries:
                    raise error.failure from error.__cause__
                seen = self._num_sent, self._num_answered
                self._say_silence(error.failure)
                await asyncio.sleep(pause_s(num_tries, error.asked_pause_s, self._random.random()))
            else:
                self._num_answered += 1
                self._pace.answered()
                self._hear()
                return answer

    @property
    def waiting_since(self) -> float | None:
        """Since when the server has answered nobody, in seconds since the epoch; None where it answers."""
        return None if self._silent_since is None else time.time() - (time.monotonic() - self._silent_since)

    def _has_worked_since(self, seen: tuple[int, int] | None) -> bool:
        """Whether the server has answered since a try, or has a request in hand that was sent before: one not refused.

        Args:
            seen: How many requests had been sent, and answered, at that try.
        """
        return seen is not None and (self._num_answered > seen[1] or next(iter(self._in_hand), seen[0] + 1) <= seen[0])

    def _is_patient(self) -> bool:
        """Whether the server has answered nobody for less than the section's patience."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since < self._section.patience_s

    def _say_silence(self, failure: EngineError) -> None:
        """Says once that the server is waited for."""
        if self._silent_since is None or self._has_said or time.monotonic() - self._silent_since < SAY_AFTER_S:
            return
        self._has_said = True
        since = time.strftime("%H:%M:%S", time.localtime(self.waiting_since))
        patience_s = self._section.patience_s
        logger.warning("waiting for the server since %s, for %g s at most: %s", since, patience_s, failure)

    def _hear(self) -> None:
        """Notes that the server is there."""
        if self._silent_since is None:
            return
        if self._has_said:
            logger.warning("%s answers again, after %.0f s.", self._where, time.monotonic() - self._silent_since)
        self._silent_since, self._has_said = None, False

    async def _ask_once(self, method: str, path: str, body: bytes | None, number: int, most_bytes: int) -> bytes:
        """The `number`th try."""
        self._num_sent += 1
        ticket = self._num_sent
        self._in_hand[ticket] = None
        url = self._urls.get(path) or self._urls.setdefault(path, self._url / path)
        try:
            async with self._session.request(method, url, data=body) as response:
                answer = await read_bounded(response, most_bytes)
        except aiohttp.ClientError as error:
            away = not isinstance(error, aiohttp.ClientSSLError)
            failure = EngineUnavailableError(
                f"{self._where} is unreachable ({self.short(str(error) or type(error).__name__)}), {number} times"
                f"{self._waited()}. Start it, or set {self._setting}.base_url to where it listens; what is complete "
                "is kept."
            )
            raise _MayPassError(failure, away=away) from error
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
        finally:
            del self._in_hand[ticket]
        status = response.status
        refusal = refusal_in_success(answer) if status < 400 else refusal_in(answer)
        if refusal is None:
            return answer
        raise self._failure(status, refusal, number, pause_asked_for(response.headers))

    def _failure(self, status: int, refusal: Refusal, number: int, asked_pause_s: float | None) -> Exception:
        """What a refusal means: that the call may be made again, or what the user is told."""
        said = self._said(status, refusal)
        if refusal.meant is not None:
            status = refusal.meant
        elif status < 400:
            status = refusal.status or 500
        limited = status == 429 and asked_pause_s is not None
        if not limited and status not in _AWAY:
            self._hear()
        if status in (402, 429) and refusal.is_spent:
            return EngineError(
                f"{self._where} has no credit left for this key: {said}. Add some, or put another key into "
                f"{self._section.api_key_env}; what is complete is kept."
            )
        if status not in _MAY_PASS and status < 500:
            return self._refusal(status, said, is_from_behind=refusal.is_from_behind)
        if limited:  # which fewer calls in flight do not cure
            self._pace.limited(asked_pause_s or 0.0)
            asked_pause_s = 0.0  # the pace makes it
        elif status in _OVERLOADED:
            self._report_push_back()
        kind = EngineUnavailableError if status in (*_MAY_PASS, *_AWAY) else EngineError
        return _MayPassError(
            kind(f"{self._where} failed after {number - 1} retries{self._waited()}: {said}"),
            busy=status in _OVERLOADED and not limited,
            away=status in _AWAY,
            limited=limited,
            asked_pause_s=asked_pause_s,
        )

    def _waited(self) -> str:
        if self._silent_since is None or self._section.patience_s == 0:
            return ""
        waited_s = time.monotonic() - self._silent_since
        return f" in {waited_s:.0f} s ({self._setting}.patience_s = {self._section.patience_s:g})"

    def _refusal(self, status: int, said: str, *, is_from_behind: bool) -> SalignError:
        if status in (401, 403) and is_from_behind:
            return EngineError(
                f"{self._where} is refused by the server behind it: {said}. Give it a key there that may use the model."
            )
        if status in (401, 403):
            return ConfigError(
                f"{self._where} refuses the key ({said}). Put a valid one into the environment variable "
                f"{self._section.api_key_env} ({self._setting}.api_key_env names it)."
            )
        if status == 404:
            return ConfigError(f"{self._where} does not know the model or the path: {said}. Check base_url and model.")
        if status in _REJECTED:
            return CallRejectedError(f"{self._name} refused a call: {said}")
        return EngineError(f"{self._where} failed: {said}")

    def _said(self, status: int, refusal: Refusal) -> str:
        words = self.short(refusal.words)
        return f"HTTP {status}: {words}" if words else f"HTTP {status}"

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
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > most_bytes:
            response.close()
            raise TooLongError
    return bytes(body)


def _probed_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose connection is known to be broken when the other machine is gone."""
    made = socket.socket(*info[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _nobody_asks() -> None:
    """Of push-backs before anybody wants to know of them."""


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
