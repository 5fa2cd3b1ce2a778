"""`foley score` on a random tiny model and a few procedural recordings: everything is there, and says what it should."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foley_ray.checkpoint import ModelInfo, load_part, read_info, save_model
from foley_ray.cli import app
from foley_ray.config import ClipSettings
from foley_ray.errors import ModelError, OutputError
from foley_ray.evaluation.classifier import Classifier
from foley_ray.evaluation.embed import ClapEncoder
from foley_ray.evaluation.made import Made, made_clips
from foley_ray.evaluation.recordings import Recording
from foley_ray.evaluation.report import markdown
from foley_ray.evaluation.run import judge_for, run
from foley_ray.evaluation.score import Real, generated_numbers, over_real
from foley_ray.presets import tiny

SPEC = tiny().model.audio
JUDGED = ("dog_bark", "gunshot", "rain")
FAST = ClipSettings(candidates=1, steps=2)
PROMPTS = {name: (f"a {name}", f"the sound of {name}") for name in JUDGED}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def place(judged_dataset: Path, judge: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts and a classifier that belongs to the dataset."""
    from foley_ray.data.manifest import load_info

    folder = tmp_path_factory.mktemp("score")
    (folder / "prompts.yaml").write_text(json.dumps(PROMPTS))
    info = judge.info.model_copy(update={"dataset": load_info(judged_dataset).digest})
    Classifier(info, judge.net).save(folder / "classifier")
    return folder


@pytest.fixture(scope="module")
def scored(tiny_model: Path, judged_dataset: Path, place: Path) -> Path:
    out = place / "whole"
    run(tiny_model, judged_dataset, place / "prompts.yaml", out, place / "classifier", None, 3, 5, FAST, progress=quiet)
    return out


def test_the_report_is_complete(scored: Path, tiny_model: Path) -> None:
    report = json.loads((scored / "report.json").read_text())
    assert report["model"]["digest"] == read_info(tiny_model).digest
    assert list(report["classes"]) == list(JUDGED)
    for name, found in report["classes"].items():
        made, real = found["generated"], found["real"]
        assert made["accuracy"]["of"] == made["clips"] == 3
        assert sum(made["taken_for"].values()) == 3 - made["accuracy"]["hits"]
        assert made["prompts"][f"a {name}"][1] == 2
        assert real["accuracy"]["from"] == "eval and cross-validated train"
        assert real["accuracy"]["of"] == 10
        assert -1 <= made["clap_score"][0] <= 1
        for space in ("clap", "judge"):
            low, high = made[space]["kad"][1:]
            assert low <= high
        assert 0 <= made["novelty"]["mel"]["like_for_like"]["memorised"][0] <= 1
    assert list(report["ladder"]) == ["real", "griffin_lim", "vocoder", "vae_vocoder", "whole"]
    assert report["ladder"]["griffin_lim"]["mel_l1"]["rain"][0] < report["ladder"]["vae_vocoder"]["mel_l1"]["rain"][0]
    assert report["pooled"]["generated"] == 9
    text = (scored / "report.md").read_text()
    for words in ("| rain |", "Griffin-Lim", "FAD", "taken for"):
        assert words in text
    for name in JUDGED:
        assert (scored / f"{name}.png").stat().st_size > 10_000
        assert (scored / f"{name}_ladder.png").stat().st_size > 10_000


def test_more_clips_add_to_those_that_are_there(scored: Path, tiny_model: Path) -> None:
    settings = FAST.model_copy(update={"duration_s": SPEC.clip_s})
    path = scored / "clips" / "rain_001.wav"
    before = path.stat().st_mtime_ns
    made = made_clips(tiny_model, PROMPTS, 4, 5, settings, scored / "clips", quiet)
    assert path.stat().st_mtime_ns == before
    assert made["rain"].prompts == ["a rain", "the sound of rain"] * 2
    made_clips(tiny_model, PROMPTS, 1, 6, settings, scored / "clips", quiet)  # another seed: all anew
    assert len(list((scored / "clips").glob("*.wav"))) == 3


def test_a_folder_of_something_else_is_not_touched(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(OutputError, match="nothing there was touched"):
        made_clips(tiny_model, PROMPTS, 1, 0, FAST, tmp_path, quiet)


def test_parts_alone_climb_the_ladder(tiny_model: Path, judged_dataset: Path, place: Path) -> None:
    info = read_info(tiny_model)
    vae_info = ModelInfo(preset="tiny", model=info.model, parts={"vae": info.parts["vae"]})
    save_model(place / "vae", vae_info, {"vae": load_part(tiny_model, "vae")})
    arguments = ["--data", judged_dataset, "--prompts", place / "prompts.yaml", "--out", place / "part"]
    arguments += ["--model", place / "vae", "--classifier", place / "classifier"]
    result = CliRunner().invoke(app, ["score", "--ladder", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "VAE and Griffin-Lim" in result.output
    report = json.loads((place / "part" / "report.json").read_text())
    assert list(report["ladder"]) == ["real", "griffin_lim", "vae_griffin_lim"]
    assert "pooled" not in report
    assert "Generated clips" not in markdown(report)
    with pytest.raises(ModelError, match="lacks clap"):
        run(place / "vae", judged_dataset, place / "prompts.yaml", place / "part", place / "classifier")


def test_a_classifier_of_something_else_is_refused(judged_dataset: Path, place: Path) -> None:
    with pytest.raises(ModelError, match=r"has classes .*; give another"):
        judge_for(judged_dataset, SPEC, ("rain", "bell"), place / "classifier", {}, quiet)
    assert judge_for(judged_dataset, SPEC, JUDGED, place / "classifier", {}, quiet).info.judged == JUDGED


@pytest.fixture(scope="module")
def rain(recordings: list[Recording]) -> Real:
    return Real.of([row for row in recordings if row.class_name == "rain"], SPEC)


def judged_as_made(waves: list[np.ndarray], rain: Real, judge: Classifier, model: Path) -> dict:
    made = Made(waves, ["rain"] * len(waves), [])
    return generated_numbers("rain", made, rain, judge, ClapEncoder(model), SPEC)


def test_copies_of_training_clips_are_called_so(rain: Real, judge: Classifier, tiny_model: Path) -> None:
    numbers = judged_as_made([0.4 * np.roll(x, 2048) for x in rain.train_NT[:3]], rain, judge, tiny_model)
    assert numbers["novelty"]["mel"]["like_for_like"]["memorised"][0] == 1
    assert numbers["novelty"]["mel"]["nearest_train_clip"] == [0, 1, 2]
    assert numbers["accuracy"]["share"][0] == 1
    held = judged_as_made(list(rain.eval_NT), rain, judge, tiny_model)
    assert held["novelty"]["mel"]["nearest_median"] > numbers["novelty"]["mel"]["nearest_median"]


def test_what_a_model_never_learned_from_it_has_not_copied(rain: Real, judge: Classifier, tiny_model: Path) -> None:
    learned_N = np.arange(len(rain.train_NT)) >= 3
    copies = [rain.train_NT[index] for index in (1, 4)]
    numbers = judged_as_made(copies, replace(rain, learned_N=learned_N), judge, tiny_model)["novelty"]["mel"]
    assert numbers["nearest_median"] > 0.3  # half of it is what the copy of clip 1 is away from anything that was learned
    assert judged_as_made(copies, rain, judge, tiny_model)["novelty"]["mel"]["nearest_median"] < 1e-4
    assert numbers["nearest_train_clip"][0] >= 3
    assert numbers["nearest_train_clip"][1] == 4
    nothing = judged_as_made(copies, replace(rain, learned_N=np.zeros_like(learned_N)), judge, tiny_model)
    assert nothing["novelty"] == {}


def test_a_copy_of_the_middle_of_a_recording_is_one(
    recordings: list[Recording], rain: Real, judge: Classifier, tiny_model: Path
) -> None:
    train = [row for row in recordings if row.class_name == "rain" and row.split == "train"]
    row, long = max(enumerate(train), key=lambda pair: len(pair[1].wave_T))
    assert len(long.wave_T) > 1.5 * SPEC.clip_samples
    middle_T = long.wave_T[SPEC.clip_samples // 2 :][: SPEC.clip_samples]
    numbers = judged_as_made([middle_T, middle_T], rain, judge, tiny_model)["novelty"]["mel"]
    assert numbers["nearest_median"] < 1e-4
    assert numbers["nearest_train_clip"] == [row, row]


def test_silence_is_never_right(rain: Real, judge: Classifier, tiny_model: Path) -> None:
    numbers = judged_as_made([np.zeros(SPEC.clip_samples, np.float32)] * 3, rain, judge, tiny_model)
    assert numbers["silent"] == 3
    assert numbers["accuracy"]["hits"] == 0
    assert numbers["taken_for"] == {"(silent)": 3}


def test_accuracy_over_real() -> None:
    found = over_real({"hits": 8, "of": 10}, {"hits": 10, "of": 10})
    assert found.value == pytest.approx(0.8)
    assert found.low < 0.8 < found.high
    assert np.isnan(over_real({"hits": 8, "of": 10}, {"hits": 0, "of": 10}).value)
