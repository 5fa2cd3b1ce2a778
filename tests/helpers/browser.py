"""A real browser for tests: headless Chromium, driven over its DevTools protocol.

With FOLEY_SCREENSHOTS=FOLDER it leaves pictures of what it saw.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = (1280, 860), (390, 844)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.calls = 0
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"]))
            if message.get("id") == self.calls:
                return dict(message["result"])

    async def run(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str, timeout_s: float = 180) -> None:
        async with asyncio.timeout(timeout_s):
            while not await self.run(script):
                await asyncio.sleep(0.1)

    async def key(self, key: str, **more: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("FOLEY_SCREENSHOTS"):
            data = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(data["data"]))


@asynccontextmanager
async def opened(url: str, size: tuple[int, int], profile: Path, ready: str) -> AsyncIterator[Page]:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    browser = subprocess.Popen([str(CHROMIUM), *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not port_file.exists() or not port_file.read_text().strip():
                await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tab = next(item for item in await answer.json() if item["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await page.call(f"{domain}.enable")
                width, height = size
                mobile = size == PHONE
                await page.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
                )
                await page.call("Page.navigate", url=url)
                await page.until(f"document.readyState === 'complete' && ({ready})")
                yield page
    finally:
        browser.terminate()
        browser.wait()


def visit(
    url: str, size: tuple[int, int], profile: Path, scene: Callable[[Page], Awaitable[None]], ready: str = "true"
) -> None:
    """Play a scene on a page that is there when the script `ready` says so; it must stay without errors and side scrolling."""

    async def play() -> None:
        async with opened(url, size, profile, ready) as page:
            await scene(page)
            assert page.problems == []
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"

    asyncio.run(play())
