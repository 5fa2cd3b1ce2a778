"""The web page in a real browser (tests/helpers/browser.py). Skipped where none is installed."""

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, DESKTOP, PHONE, Page, visit

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
READY_PAGE = "document.getElementById('about')?.textContent.includes('model')"

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

    visit(service, DESKTOP, tmp_path, scene, READY_PAGE)


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

    visit(service, PHONE, tmp_path, scene, READY_PAGE)


def test_the_reference_is_whole_without_any_other_host(service: str, tmp_path: Path) -> None:
    async def scene(page: Page) -> None:
        fetched = await page.run("performance.getEntriesByType('resource').map((item) => new URL(item.name).origin)")
        assert set(fetched) == {service}
        paths = await page.run("[...document.querySelectorAll('.opblock-summary-path')].map((item) => item.dataset.path)")
        assert {"/v1/audio/generate", "/v1/sound-generation", "/v1/batches/{batch_id}/cancel"} <= set(paths)
        await page.picture("docs")

    visit(f"{service}/docs", DESKTOP, tmp_path, scene, "document.querySelectorAll('.opblock').length > 0")
