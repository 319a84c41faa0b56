"""Servers as processes of a test, the mock engine among them."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from ports import free_port
from waits import HANG_S, wait_until

from salign.config import Sampling
from salign.engines.base import Prompt
from salign.engines.journal import CallKeys

MAX_IN_FLIGHT = 8
# What the environment names as a proxy is not asked.
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server on this machine answers there with success."""
    try:
        _HERE.open(url, timeout=HANG_S).close()
    except OSError:
        return False
    return True


class Mock:
    """The mock engine as a process, on a port of its own."""

    def __init__(self, *words, port=None):
        self.port = port or free_port()
        self.start(*words)

    def start(self, *words):
        script = str(Path(__file__).parent / "mock_engine.py")
        self._process = subprocess.Popen([sys.executable, script, "--port", str(self.port), *map(str, words)])
        assert wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/v1/models"), self._process)

    @contextlib.contextmanager
    def instead(self, *words):
        """In the block another is in its place, which has answered nothing yet; at the end a third."""
        self.kill()
        self.start(*words)
        try:
            yield
        finally:
            self.kill()
            self.start()

    @contextlib.contextmanager
    def paused(self):
        """It answers nobody in the block."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def get(self, path):
        with _HERE.open(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            return json.load(answer)

    def answered(self):
        """When each call of the society was answered, by the journal's key, when nothing is being answered any more.

        What an engine asks when it opens is not among them: under a system text of its own, or for a schema, which is
        not held to.
        """
        wait_until(lambda: self.get("stats")["in_flight"] == 0)
        keys = CallKeys("mock")
        found = {}
        for item in self.get("stats")["answered"]:
            payload = item["payload"]
            *before, message = payload["messages"]
            system = before[0]["content"] if before else None
            if "response_format" in payload or not (system is None or system.startswith("You judge answers.")):
                continue
            form = "rating" if "Reply in the form" in message["content"] else "text"
            sampling = Sampling(**{name: payload[name] for name in ("temperature", "top_p", "max_tokens")})
            found[keys.of(Prompt(message["content"], system, form=form), sampling, payload["seed"]).hex()] = item[
                "times"
            ]
        return found

    def section(self, **settings):
        url = f"http://127.0.0.1:{self.port}/v1"
        return {"kind": "openai", "base_url": url, "max_in_flight": MAX_IN_FLIGHT, **settings}

    def kill(self):
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
