"""A headless Chromium, driven by its own protocol (DevTools) over aiohttp, which is there anyway."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
PATIENCE_S = 60.0


def find_chromium() -> str:
    """The browser's program; on Debian, root installs it. Skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-qq", *words], capture_output=True, check=False, timeout=600)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium, and it cannot be installed (Debian: apt-get install chromium)")
    return found


class Page:
    """One page: what it said on its console, what it asked the network for, and what can be done with it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] in ("error", "warning"):
                self.complaints.append(str(said["params"]["args"]))
            elif said["method"] == "Log.entryAdded":
                self.complaints.append(str(said["params"]["entry"]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        said = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in said, said
        return dict(said["result"])

    async def run(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        said = await self.send("Runtime.evaluate", **parameters)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until an expression holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.run(expression):
                await asyncio.sleep(0.05)

    async def look(self, width: int, height: int, scheme: str) -> None:
        """A window's width and height (CSS pixels), and the user's colour scheme."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def open(self, path: Path) -> None:
        await self.send("Page.navigate", url=path.as_uri())
        await self.until("document.readyState === 'complete'")

    async def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """The page from its top; `height` in CSS pixels."""
        import base64

        size = await self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": height or size[1], "scale": 1}
        said = await self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(said["data"]))

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)


@contextlib.asynccontextmanager
async def browsing(program: str, folder: Path) -> AsyncIterator[Page]:
    """An empty page of a new browser, whose profile is in the folder; it is ended with the block."""
    profile = folder / "profile"
    process = await asyncio.create_subprocess_exec(
        program,
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (profile / "DevToolsActivePort").exists():
                assert process.returncode is None, "chromium ended at once"
                await asyncio.sleep(0.05)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [target] = [item for item in await answer.json() if item["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.send(f"{domain}.enable")
                yield page
                await page.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
