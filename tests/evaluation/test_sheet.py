"""The listening sheet: blind, seeded, whole; rated by keyboard and on a phone in a real browser; and its results."""

import csv
import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, DESKTOP, PHONE, Page, visit
from sounds import save, tone
from typer.testing import CliRunner

from foley_ray.cli import app
from foley_ray.errors import ConfigError, DataError
from foley_ray.evaluation.sets import find_set
from foley_ray.evaluation.sheet import load_key, make_sheet, read_ratings, results

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet of two systems and two classes: six trials, 20 ratings."""
    folder = tmp_path_factory.mktemp("sheet")
    for number, system in enumerate(("secretive", "mysterious")):
        for name in ("dog_bark", "rain"):
            for index in range(3):
                save(folder / system / name / f"{index}.wav", tone(hz=300 + 200 * number + 40 * index, duration_s=0.3))
    arguments = ["--sounds", f"one={folder}/secretive", "--sounds", f"two={folder}/mysterious", "--out", f"{folder}/sheet.html"]
    result = CliRunner().invoke(app, ["listen-sheet", *arguments, "--in-set", "2", "--seed", "5"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_it_is_blind_and_needs_nothing_beside_it(sheet: Path) -> None:
    page = (sheet / "sheet.html").read_text()
    for told in ("secretive", "mysterious", ".wav", "http://", "https://"):
        assert told not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    key = load_key(sheet / "sheet.key.json")
    assert page.count("data:audio/ogg;base64,") == len(key["codes"]) == 16
    assert {found["system"] for found in key["codes"].values()} == {"one", "two"}


def test_the_seed_decides_the_order(sheet: Path) -> None:
    systems = {"one": find_set(sheet / "secretive"), "two": find_set(sheet / "mysterious")}

    def order(seed: int) -> list[str]:
        page, key = make_sheet(systems, 2, 2, seed)
        trials = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["trials"]  # type: ignore[index]
        return [key["codes"][item["code"]]["system"] + trial["class"] for trial in trials for item in trial["items"]]

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(4)}) > 1
    firsts = [order(seed)[0][:3] for seed in range(20)]
    assert set(firsts) == {"one", "two"}  # neither is always A


def test_what_cannot_be_compared_is_refused(sheet: Path) -> None:
    one = find_set(sheet / "secretive")
    with pytest.raises(ConfigError, match="two systems at least"):
        make_sheet({"one": one})
    with pytest.raises(ConfigError, match="no class in common: one has dog_bark; two has rain"):
        make_sheet({"one": one.only({"dog_bark"}), "two": one.only({"rain"})})
    result = CliRunner().invoke(app, ["listen-sheet", "--sounds", "folder", "--out", "x.html"])
    assert "must be NAME=FOLDER" in str(result.exception)


def write_ratings(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sheet", "listener", "trial", "class", "code", "scale", "rating"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_ratings_are_unblinded_and_weighed(sheet: Path, tmp_path: Path) -> None:
    key = load_key(sheet / "sheet.key.json")
    given = {"one": {"quality": 8, "fit": 6, "diversity": 4}, "two": {"quality": 2, "fit": 2, "diversity": 10}}
    rows = [
        {"sheet": key["sheet"], "listener": "me", "code": code, "scale": scale, "rating": given[found["system"]][scale]}
        for code, found in key["codes"].items()
        for scale in ("quality", "fit", "diversity")
    ]
    path = write_ratings(tmp_path / "r.csv", [*rows, {**rows[0]}])
    ratings = read_ratings([path], key)
    assert len(ratings) == len(rows)  # the last row corrects the first
    found = results(ratings, key["systems"])
    assert found["one"]["weighted"] == pytest.approx((2 * 8 + 2 * 6 + 4) / 5)
    assert found["two"]["weighted"] == pytest.approx((2 * 2 + 2 * 2 + 10) / 5)
    told = CliRunner().invoke(app, ["listen-results", str(path), "--key", str(sheet / "sheet.key.json")]).output
    assert "6.40" in told
    for change, why in (
        ({"rating": 11}, "rating 11 must be from 1 to 10"),
        ({"sheet": "other"}, "it is of sheet other"),
        ({"code": "00"}, "is not on the sheet"),
    ):
        with pytest.raises(DataError, match=rf"bad.csv, line 2: .*{why}"):
            read_ratings([write_ratings(tmp_path / "bad.csv", [rows[0] | change])], key)
    with pytest.raises(DataError, match="no key of a listening sheet"):
        load_key(path)


SAVED = """(() => {
  const old = URL.createObjectURL;
  URL.createObjectURL = (blob) => { window.saved = blob; return old(blob); };
  document.getElementById('save').click();
  URL.createObjectURL = old;
  return window.saved.text();
})()"""


@browser
def test_rated_by_keyboard_alone(sheet: Path, tmp_path: Path) -> None:
    async def scene(page: Page) -> None:
        await page.key("a", text="a")
        await page.until("document.querySelector('.play.playing') !== null")
        await page.until("document.querySelector('.play.playing') === null", 20)  # a sound of 0.3 s ends
        trials = await page.run("trials.map((trial) => trial.items.length * trial.scales.length)")
        assert sorted(trials) == [2, 2, 4, 4, 4, 4]
        for place, count in enumerate(trials):
            for turn in range(count):
                await page.key(str((turn + 7) % 10), text=str((turn + 7) % 10))
            if place == 0:
                await page.picture("sheet_desktop")
            await page.key("n", text="n")
        assert await page.run("document.getElementById('state').textContent") == "20 of 20 ratings"
        await page.run("document.getElementById('listener').value = '=cmd'")
        (tmp_path / "saved.csv").write_text(await page.run(SAVED), newline="")

    visit((sheet / "sheet.html").as_uri(), DESKTOP, tmp_path / "profile", scene)
    key = load_key(sheet / "sheet.key.json")
    ratings = read_ratings([tmp_path / "saved.csv"], key)
    assert len(ratings) == 20
    assert {row["rating"] for row in ratings} == {7, 8, 9, 10}
    assert {row["listener"] for row in ratings} == {"'=cmd"}


@browser
def test_rated_by_touch_on_a_phone_and_taken_up_again(sheet: Path, tmp_path: Path) -> None:
    async def scene(page: Page) -> None:
        await page.run("document.querySelectorAll('.steps input[value=\"6\"]').forEach((input) => input.click())")
        sides = "[...document.querySelectorAll('.steps label, button')].map((item) => item.getBoundingClientRect().height)"
        assert min(await page.run(sides)) >= 43  # a finger's width
        await page.picture("sheet_phone")
        before = await page.run("document.getElementById('state').textContent")
        await page.run("document.getElementById('next').click()")
        await page.call("Page.reload")
        await page.until(
            "document.readyState === 'complete' && document.getElementById('stage').textContent.includes('2 of 6')"
        )
        assert await page.run("document.getElementById('state').textContent") == before
        await page.run("document.getElementById('back').click()")
        assert await page.run("document.querySelectorAll('input:checked').length") in (2, 4)

    visit((sheet / "sheet.html").as_uri(), PHONE, tmp_path / "profile", scene)
