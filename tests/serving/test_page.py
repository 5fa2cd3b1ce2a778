"""The web page in a real browser: headless Chromium, driven over its DevTools protocol. Skipped where none is installed.

With FOLEY_SCREENSHOTS=FOLDER it leaves pictures of what it saw.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
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
async def opened(url: str, size: tuple[int, int], profile: Path) -> AsyncIterator[Page]:
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
                await page.until(
                    "document.readyState === 'complete' && document.getElementById('about')?.textContent.includes('model')"
                )
                yield page
    finally:
        browser.terminate()
        browser.wait()


def visit(url: str, size: tuple[int, int], profile: Path, scene: Callable[[Page], Awaitable[None]]) -> None:
    async def play() -> None:
        async with opened(url, size, profile) as page:
            await scene(page)
            assert page.problems == []
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"

    asyncio.run(play())


SET = "for (const [id, value] of Object.entries({settings})) document.getElementById(id).value = value; "
READY = "document.querySelectorAll('.candidate').length === 3"


def test_from_a_prompt_to_ranked_sounds_by_keyboard_alone(service: str, tmp_path: Path) -> None:
    async def scene(page: Page) -> None:
        await page.run(SET.replace("{settings}", "{steps: 40, duration_s: 0.5, seed: 7}"))
        await page.run("document.activeElement.blur()")
        await page.key("/", text="/")
        assert await page.run("document.activeElement.id") == "prompt"
        await page.call("Input.insertText", text="a dog bark")
        await page.key("Enter", modifiers=2, code="Enter", windowsVirtualKeyCode=13)
        await page.until("document.getElementById('stage').textContent.includes('of 120 steps')")
        await page.until(READY)
        scores = await page.run("[...document.querySelectorAll('.score')].map((item) => Number(item.textContent))")
        assert scores == sorted(scores, reverse=True)
        assert await page.run("document.activeElement.className") == "play"
        pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        assert await page.run(f"[...document.querySelectorAll('canvas')].map((c) => new Set({pixels}).size > 2)") == [True] * 6
        assert re.fullmatch(r"a_dog_bark_seed7_[0-2]\.wav", await page.run("document.querySelector('.download').download"))
        assert await page.run("document.querySelector('#history li').textContent") == "a dog barkseed 7 · 3 candidates · 0.5 s"
        await page.picture("desktop")

    visit(service, DESKTOP, tmp_path, scene)


def test_on_a_phone_with_an_error_and_a_cancelled_request(service: str, tmp_path: Path) -> None:
    async def scene(page: Page) -> None:
        click = "document.getElementById('go').click()"
        await page.run(SET.replace("{settings}", f"{{prompt: '{'bark ' * 100}'}}") + click)
        await page.until("document.getElementById('error').textContent.includes('more than 75')")
        await page.run(SET.replace("{settings}", "{prompt: 'rain', steps: 200, candidates: 8, duration_s: 4}") + click)
        await page.until("document.getElementById('stage').textContent.includes('steps')")
        await page.run("document.getElementById('stop').click()")
        await page.until("document.getElementById('progress').hidden && document.getElementById('error').hidden")
        await page.run(SET.replace("{settings}", "{steps: 4, candidates: 3, duration_s: 0.5}") + click)
        await page.until(READY)
        page.problems = [problem for problem in page.problems if "400 (Bad Request)" not in problem]  # the one provoked above
        await page.picture("phone")

    visit(service, PHONE, tmp_path, scene)
