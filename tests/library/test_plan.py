"""Plans: what they multiply out to, and what is refused, on which line."""

from pathlib import Path

import pytest

from foley_ray.errors import ConfigError
from foley_ray.library.plan import Plan, expand, load_plan

PLAN = """\
library: Small Foley
creator: FRAY
source: SMALL
date: 2026-11-20
clip: {candidates: 4, threshold: 0.3}
categories:
  - catid: ANMLDog
    name: "Dog Bark {mood}"
    prompts: ["a {mood} dog barks", "{mood} barking of a dog, {place}"]
    vary: {mood: [angry, playful], place: [indoors, in a yard]}
    seeds: 3
  - catid: RAIN
    name: Rain
    prompts: [rain on leaves]
    seeds: [5, 7]
    clip: {duration_s: 8, loop: true}
    gates: {similarity: null}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_lists_and_seeds_multiply_only_the_prompts_that_name_them(tmp_path: Path) -> None:
    clips = expand(load_plan(write(tmp_path, PLAN)), "model")
    assert len(clips) == 2 * 3 + 4 * 3 + 2
    assert [clip.prompt for clip in clips[:7:3]] == [
        "a angry dog barks",
        "a playful dog barks",
        "angry barking of a dog, indoors",
    ]
    assert clips[0].place("wav") == "Animals/ANMLDog_Dog Bark Angry 01_FRAY_SMALL.wav"
    assert clips[-1].place("flac") == "Rain/RAIN_Rain 02_FRAY_SMALL.flac"
    assert (clips[-1].seed, clips[-1].settings.duration_s, clips[-1].settings.candidates) == (7, 8, 4)
    assert clips[-1].gates.similarity is None
    assert clips[0].gates.similarity == 0.995
    assert len({clip.id for clip in clips}) == len({clip.stem for clip in clips}) == len(clips)


def test_an_id_changes_with_prompt_seed_settings_and_model_and_with_nothing_else(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, PLAN))
    ids = [clip.id for clip in expand(plan, "model")]
    renamed = plan.model_copy(update={"library": "Other", "creator": "X"})
    assert [clip.id for clip in expand(renamed, "model")] == ids
    assert not set(ids) & {clip.id for clip in expand(plan, "other model")}
    changed = plan.model_copy(update={"clip": plan.clip.model_copy(update={"steps": 21})})
    assert not set(ids) & {clip.id for clip in expand(changed, "model")}


def test_a_budget_is_shared_out_over_the_categories(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, PLAN + "budget: {clips: 5}\n"))
    assert [clip.catid for clip in expand(plan, "model")] == ["ANMLDog"] * 3 + ["RAIN"] * 2
    whole = load_plan(write(tmp_path, PLAN))
    assert {clip.id: clip.stem for clip in expand(plan, "m")}.items() <= {c.id: c.stem for c in expand(whole, "m")}.items()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("library:", "libary:", "line 1: library: Field required; libary: no such setting"),
        ("candidates: 4", "candidats: 4", r"line 5: clip.candidats: no such setting \(did you mean: candidates\?\)"),
        ("candidates: 4", "candidates: 0", "line 5: clip.candidates = 0"),
        ("creator: FRAY", "creator: F_RAY", "line 2: creator = 'F_RAY'"),
        (
            "catid: RAIN",
            "catid: RAINY",
            "line 12: categories.1.catid = 'RAINY': 'RAINY' is no CatID of UCS 8.2; near it: RAIN",
        ),
        ("rain on leaves", "'rain on {what}'", r"line 12: .*\{what\} has no list in vary"),
        (", {place}", "", r"line 7: .*vary.place is in no prompt; write \{place\}"),
        ("duration_s: 8", "duration_s: 99", "duration_s = 99"),
        ("seeds: 3", "seeds: 0", "line 7: categories.0: seeds 0 must be at least 1"),
        ("similarity: null", "loudness: 3", "loudness: no such setting"),
        ("date: 2026-11-20", "date: tonight", "line 4: date = 'tonight'"),
        ("library: Small Foley", "library: [", "cannot read plan .*plan.yaml"),
    ],
)
def test_what_a_plan_gets_wrong_is_named_with_its_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in PLAN
    with pytest.raises(ConfigError, match=said) as error:
        load_plan(write(tmp_path, PLAN.replace(old, new)))
    assert "\n" not in str(error.value)


def test_the_same_sound_twice_is_refused() -> None:
    category = {"catid": "RAIN", "name": "Rain", "prompts": ["rain"]}
    plan = Plan.model_validate(
        {
            "library": "L",
            "creator": "C",
            "source": "S",
            "date": "2026-01-01",
            "categories": [category, {**category, "name": "B"}],
        }
    )
    with pytest.raises(ConfigError, match="the plan has 'rain' with seed 0 twice, as RAIN_Rain 01_C_S and RAIN_B 01_C_S"):
        expand(plan, "model")
