"""Thresholds of `foley calibrate` wherever a number may stand."""

from pathlib import Path

import pytest

from foley_ray.errors import ConfigError
from foley_ray.library.plan import load_plan
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
