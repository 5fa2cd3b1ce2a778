"""The catalogue's page in a real browser, with 5,000 sounds: search, filter, sort, play, by keyboard and on a phone."""

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, DESKTOP, PHONE, Page, visit
from sounds import save, tone

from foley_ray.library.catalogue import page as make_page
from foley_ray.library.catalogue import picture_files
from foley_ray.library.finish import picture
from foley_ray.library.plan import Plan

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

ROWS = 5000
KINDS = [
    ("ANMLDog", "ANIMALS", "DOG", "Dog Bark", "a {} dog barks"),
    ("FEETHmn", "FOOTSTEPS", "HUMAN", "Footsteps", "footsteps on {} wood"),
    ("RAIN", "RAIN", "GENERAL", "Rain", "{} rain falls on leaves"),
    ("GUNMisc", "GUNS", "MISC", "Gunshot", "a {} gun shot </script><b>outdoors</b>"),
]
WORDS = ["angry", "small", "heavy", "distant", "soft", "steady", "quick"]
NAMES = "[...document.querySelectorAll('h2')].map((name) => name.textContent)"
PLAN = Plan.model_validate(
    {"library": "Big Foley", "creator": "F", "source": "S", "date": "2026-11-20",
     "categories": [{"catid": "RAIN", "name": "Rain", "prompts": ["rain"]}]}
)  # fmt: skip
COUNT = "document.querySelector('output').textContent"
TYPE = "((text) => { words.value = text; const from = performance.now(); words.oninput(); return performance.now() - from; })"


def row(index: int, rng: np.random.Generator) -> dict:
    catid, category, subcategory, name, prompt = KINDS[index % len(KINDS)]
    word = WORDS[index % len(WORDS)]
    return {
        "file": f"{category.title()}/{catid}_{name} {word.title()} {index:04d}_FRAY_BIG.wav",
        "catid": catid,
        "category": category,
        "subcategory": subcategory,
        "fx_name": f"{name} {word.title()} {index:04d}",
        "prompt": prompt.format(word),
        "keywords": "foley",
        "seed": index,
        "score": round(float(rng.uniform(0, 1)), 6),
        "target": "motors/7.wav" if index == 0 else "prompt",
        "passed_threshold": index % 9 > 0,
        "loop": False,
        "duration_s": 0.4,
        "integrated_lufs": None if index == 0 else -20.3,
    }


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A page, its rows, and the files of two of them: the best dog, and the first sound."""
    folder, rng = tmp_path_factory.mktemp("library"), np.random.default_rng(0)
    rows = [row(index, rng) for index in range(ROWS)]
    pictures = [picture(tone(48_000, 0.4, hz=hz)[:, 0] * np.linspace(1, 0, 19_200)) for hz in (200, 900, 4000)]
    drawn = [pictures[index % 3] for index in range(ROWS)]
    (folder / "index.html").write_bytes(b"".join(make_page(PLAN, rows, drawn)))
    (folder / "large.html").write_bytes(b"".join(make_page(PLAN, rows)))
    for name, data in picture_files(drawn):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    save(folder / best_dog(rows)["file"], tone(48_000, 0.4), 48_000)
    return folder, rows


def best_dog(rows: list[dict]) -> dict:
    return max((row for row in rows if row["catid"] == "ANMLDog" and "angry" in row["prompt"]), key=lambda row: row["score"])


def test_found_sorted_and_played_by_keyboard_among_thousands(library: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, rows = library
    assert (folder / "index.html").stat().st_size < 14e6

    async def scene(page: Page) -> None:
        opened_ms = "performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart"
        assert await page.run(opened_ms) < 8000  # 0.4 s on a quiet core
        assert await page.run(COUNT) == "5000 of 5000"
        assert await page.run("document.querySelectorAll('article').length") < 200  # the rest comes with scrolling
        pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        await page.until(f"((c) => new Set({pixels}).size > 10)(document.querySelector('canvas'))")
        await page.picture("library_desktop")
        assert sorted([await page.run(f"{TYPE}('dog')") for _ in range(5)])[2] < 500  # ms; 5 on a quiet core
        await page.run(f"{TYPE}('')")

        await page.run("document.activeElement.blur()")
        await page.key("/", text="/")
        assert await page.run("document.activeElement.id") == "words"
        await page.call("Input.insertText", text="angry foley")
        wanted = [row for row in rows if "angry" in row["prompt"]]
        assert await page.run(COUNT) == f"{len(wanted)} of 5000"
        await page.run("category.value = 'ANIMALS'; category.onchange()")
        dogs = [row for row in wanted if row["catid"] == "ANMLDog"]
        assert await page.run(COUNT) == f"{len(dogs)} of 5000"
        await page.run("order.value = 'score'; order.onchange()")
        names = await page.run(NAMES)
        assert names == [row["fx_name"] for row in sorted(dogs, key=lambda row: -row["score"])][: len(names)]

        await page.run("words.focus()")
        await page.key("ArrowDown")
        assert await page.run("document.activeElement.ariaLabel") == f"Play {best_dog(rows)['fx_name']}"
        await page.key("ArrowRight")
        assert await page.run("document.activeElement.ariaLabel") == f"Play {names[1]}"
        await page.key("ArrowLeft")
        await page.key("Enter", text="\r", windowsVirtualKeyCode=13)
        await page.until("player.currentTime > 0 && document.querySelector('article.playing h2') !== null")
        await page.until("document.querySelector('article.playing') === null", 20)  # a sound of 0.4 s ends
        await page.run("player.loop = true; document.activeElement.click(); player.loop = true")
        await page.until("!player.paused")
        await page.key(" ", text=" ", windowsVirtualKeyCode=32)
        await page.until("player.paused && document.querySelector('article.playing') !== null")
        await page.picture("library_found")
        await page.key("Escape")
        assert await page.run("document.querySelector('article.playing')") is None
        await page.key("ArrowUp")
        assert await page.run("document.activeElement.id") == "words"
        await page.key("Escape")
        assert await page.run("words.value") == ""
        await page.run(f"{TYPE}('no such sound')")
        assert await page.run("document.querySelector('.none').textContent") == "No sound has all of these words."

    visit((folder / "index.html").as_uri(), DESKTOP, tmp_path, scene)


def test_on_a_phone_more_comes_with_scrolling_and_a_lost_file_is_told(library: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, _ = library

    async def scene(page: Page) -> None:
        sides = "[...document.querySelectorAll('input, select, article button')].map((item) => item.getBoundingClientRect())"
        assert min(await page.run(f"{sides}.map((side) => side.height)")) >= 43  # a finger's width
        assert max(await page.run(f"{sides}.map((side) => side.right)")) <= PHONE[0]
        first = await page.run("document.querySelector('article').textContent")
        assert "ANIMALS / DOG, 0.40 s, seed 0, target motors/7.wav" in first
        assert "<b>outdoors</b>" in await page.run("document.querySelectorAll('article')[3].textContent")  # text, not a tag
        shown = await page.run("shown")
        await page.run("scrollTo(0, document.body.scrollHeight)")
        await page.until(f"shown > {shown}")
        await page.run("scrollTo(0, 0)")
        await page.picture("library_phone")
        await page.run("document.querySelector('article button').click()")
        await page.until("document.querySelector('article .prompt').textContent.startsWith('cannot be played')")
        page.problems = [problem for problem in page.problems if "ERR_FILE_NOT_FOUND" not in problem]  # the one provoked above

    visit((folder / "index.html").as_uri(), PHONE, tmp_path, scene)


def test_a_very_large_page_loads_the_pictures_it_shows(library: tuple[Path, list[dict]], tmp_path: Path) -> None:
    """They look as those of the page that has its own, and no more of them are read than are seen."""
    folder, rows = library
    assert (folder / "large.html").stat().st_size < 0.25 * (folder / "index.html").stat().st_size
    pixels: list[str] = []
    drawn = "[...document.querySelectorAll('canvas')].slice(0, 8).map((c) => c.toDataURL()).join(' ')"

    async def scene(page: Page) -> None:
        await page.until("document.querySelectorAll('canvas').length >= 8")
        await page.until("[...document.querySelectorAll('canvas')].slice(0, 8).every((canvas) => canvas.height === 104)")
        pixels.append(await page.run(drawn))
        if len(pixels) == 2:
            assert await page.run("library.clips.filter((clip) => clip.levels).length") == 1000
            await page.run(f"{TYPE}({rows[4100]['fx_name'].split()[-1]!r})")  # the sound 4100, of the fifth file
            await page.until("document.querySelector('canvas').height === 104")
            assert await page.run("library.clips.filter((clip) => clip.levels).length") == 2000
            await page.picture("library_large")

    for name in ("index.html", "large.html"):
        (tmp_path / name).mkdir()
        visit((folder / name).as_uri(), DESKTOP, tmp_path / name, scene)
    assert pixels[0] == pixels[1]
