"""Thresholds of `foley calibrate` wherever a number may stand."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foley_ray.checkpoint import read_info
from foley_ray.cli import app
from foley_ray.errors import ConfigError
from foley_ray.jobfile import LibraryJob
from foley_ray.library.build import build
from foley_ray.library.outline import outline
from foley_ray.library.plan import load_plan
from foley_ray.library.prune import prune
from foley_ray.thresholds import threshold_of

FILE = "clap: abc\nquantile: 0.1\nthresholds:\n  dog_bark: 0.41  # why\n  rain: -0.02\n"
PLAN = """
library: L
creator: C
source: S
date: 2026-11-20
clip: {threshold: "marks/t.yaml:rain"}
categories:
  - {catid: RAIN, name: Rain, prompts: [rain]}
  - {catid: ANMLDog, name: Dog, prompts: [dog], clip: {threshold: "marks/t.yaml:dog_bark"}, gates: {score: "marks/t.yaml:rain"}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "t.yaml").write_text(FILE)
    return tmp_path


def test_a_number_or_a_class_of_a_file(folder: Path) -> None:
    assert threshold_of("0.3") == 0.3
    assert threshold_of("marks/t.yaml:dog_bark", folder) == 0.41
    assert threshold_of(f"{folder}/marks/t.yaml:rain", clap="abc") == -0.02


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("high", "must be a number, or FILE:CLASS"),
        ("marks/t.yaml:cat", "no class cat; it has dog_bark, rain"),
        ("marks/none.yaml:cat", "cannot read thresholds"),
        ("plan.yaml:rain", "no file of `foley calibrate`"),
        ("marks/t.yaml:rain", "calibrated for CLAP abc, this model has xyz"),
    ],
)
def test_anything_else_is_refused(text: str, told: str, folder: Path) -> None:
    (folder / "plan.yaml").write_text("library: L")
    with pytest.raises(ConfigError, match=told):
        threshold_of(text, folder, clap="xyz")


def test_a_plan_reads_them_beside_itself(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN)
    plan = load_plan(folder / "plan.yaml")
    rain, dog = plan.categories
    assert plan.clip_of(rain).threshold == -0.02
    assert plan.clip_of(dog).threshold == 0.41
    assert (plan.gates_of(rain).score, plan.gates_of(dog).score) == (None, -0.02)
    (folder / "plan.yaml").write_text(PLAN.replace("yaml:rain", "yaml:snow"))
    with pytest.raises(ConfigError, match="no class snow"):
        load_plan(folder / "plan.yaml")


def test_a_plan_wants_the_clap_they_were_made_for(folder: Path, tiny_model: Path) -> None:
    plan, library = folder / "plan.yaml", folder / "library"
    plan.write_text(PLAN)
    assert load_plan(plan, clap="abc") == load_plan(plan)
    (library / ".foley").mkdir(parents=True)
    for run in (
        lambda: build(LibraryJob(plan=plan, out=library, model=tiny_model)),
        lambda: list(outline(plan, None, tiny_model, all_clips=False)),
        lambda: prune([plan], library, tiny_model),
    ):
        with pytest.raises(ConfigError, match=r"marks/t.yaml was calibrated for CLAP abc, this model has .*: calibrate again"):
            run()


def test_generate_reads_them_and_wants_the_clap_they_were_made_for(folder: Path, tiny_model: Path) -> None:
    clap = read_info(tiny_model).parts["clap"].digest
    (folder / "own.yaml").write_text(FILE.replace("clap: abc", f"clap: '{clap}'"))
    arguments = ["generate", "rain", "--model", tiny_model, "--out", folder / "out", "--duration", 0.5, "--steps", 1]

    def generate(threshold: str) -> str:
        found = [str(item) for item in (*arguments, "--seed", 1, "--max-redraws", 0, "--threshold", threshold)]
        return CliRunner().invoke(app, found, catch_exceptions=False).output

    for text, told in (("high", "must be a number"), (f"{folder}/marks/t.yaml:rain", "calibrated for CLAP abc")):
        with pytest.raises(ConfigError, match=told):
            generate(text)
    assert not (folder / "out").exists()
    assert "score" in generate(f"{folder}/own.yaml:rain")
    (found,) = (folder / "out").glob("*.json")
    assert json.loads(found.read_text())["settings"]["threshold"] == -0.02
