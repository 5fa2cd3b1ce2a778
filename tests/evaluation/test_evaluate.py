"""`foley evaluate` from the shell's side, on sounds whose distances are known by construction."""

import hashlib
import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foley_ray.audio.files import write_wav
from foley_ray.checkpoint import ModelInfo
from foley_ray.cli import app
from foley_ray.config import RobertaClapConfig
from foley_ray.errors import ConfigError, DataError, FoleyError, ModelError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.classifier import Classifier
from foley_ray.evaluation.evaluate import Features, _space, held_part, made_numbers, real_numbers
from foley_ray.evaluation.hear import Ears, hear
from foley_ray.evaluation.sets import find_set
from foley_ray.evaluation.table import load_runs
from foley_ray.presets import tiny

RATE_HZ = 22050


def noise(seed: int, colour: int) -> np.ndarray:
    """Half a second to a second of noise, smoothed over `colour` samples."""
    rng = np.random.default_rng(seed)
    wave_T = np.convolve(rng.standard_normal(int(rng.integers(RATE_HZ // 2, RATE_HZ))), np.ones(colour) / colour, "same")
    return (0.4 * wave_T / np.abs(wave_T).max()).astype(np.float32)


def write_set(folder: Path, seed: int, classes: dict[str, int], count: int = 8) -> Path:
    for name, colour in classes.items():
        for index in range(count):
            write_wav(folder / name / f"{index}.wav", noise(1000 * seed + index, colour), RATE_HZ)
            (folder / name / f"{index}.json").write_text(json.dumps({"prompt": f"a {name}"}))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "real", 1, {"bright": 1, "dull": 40})
    write_set(folder / "good", 2, {"bright": 1, "dull": 40})
    write_set(folder / "swapped", 2, {"bright": 40, "dull": 1})
    write_wav(folder / "swapped" / "dull" / "silent.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    (folder / "swapped" / "dull" / "broken.wav").write_bytes(b"RIFF and no more")
    return folder


def foley(*arguments: object) -> str:
    """What the command prints; its error is raised."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def evaluated(sets: Path, name: str, model: Path) -> tuple[str, dict, Path]:
    out = sets / f"out_{name}"
    arguments = ("--reference", sets / "real", "--generated", sets / name, "--out", out, "--clap", model, "--seconds", 1)
    if (out / "report.json").is_file():
        return "", json.loads((out / "report.json").read_text()), out
    return foley(*arguments), json.loads((out / "report.json").read_text()), out


def test_the_right_sounds_are_nearer_than_the_wrong_ones(sets: Path, tiny_model: Path) -> None:
    told, good, out = evaluated(sets, "good", tiny_model)
    _, swapped, _ = evaluated(sets, "swapped", tiny_model)
    for key in ("fad", "kad", "nearest"):
        assert good["mean"][key]["generated"][0] < swapped["mean"][key]["generated"][0]
    assert good["mean"]["density"]["generated"][0] > swapped["mean"]["density"]["generated"][0]
    for name in ("bright", "dull"):
        found = good["classes"][name]["generated"]
        assert found["clips"] == 8
        for key in ("fad", "kad", "density", "coverage", "diversity", "nearest", "clap_score"):
            value, low, high = found[key]
            assert low <= value <= high
    assert "not comparable with published figures" in told
    assert "FAD" in told
    text = (out / "report.md").read_text()
    assert "22050 Hz (soxr HQ), the first 1.0" in text
    assert "| mean |" in text


def test_silence_and_broken_files_are_counted_and_left_out(sets: Path, tiny_model: Path) -> None:
    _, report, out = evaluated(sets, "swapped", tiny_model)
    found = report["classes"]["dull"]["generated"]
    assert (found["clips"], found["silent"], found["unreadable"]) == (8, 1, 1)
    assert "cannot read" in report["how"]["unreadable"]["dull"]["broken.wav"]
    assert "dull: 1 generated clips are silent" in (out / "report.md").read_text()


def test_the_page_needs_nothing_beside_it(sets: Path, tiny_model: Path) -> None:
    _, _, out = evaluated(sets, "good", tiny_model)
    page = (out / "report.html").read_text()
    assert len(re.findall(r'<audio controls preload="none" src="data:audio/ogg;base64,', page)) == 16
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', page)) == 17
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_a_set_and_itself_are_at_0_in_any_order_and_batch(sets: Path, tiny_model: Path) -> None:
    found = find_set(sets / "real")
    ears = Ears(tiny_model, None, 1.0)
    heard = hear(found, ears)
    one_by_one = [ears({"path": np.array([str(place.path)]), "row": np.array([-1])}) for place in found.places["dull"][::-1]]
    alone_ND = np.concatenate([batch["clap"] for batch in one_by_one])[::-1]
    np.testing.assert_allclose(alone_ND, heard["dull"].clap_ND, atol=1e-5)


def test_actors_hear_the_same(sets: Path, tiny_model: Path, published_weights: Path, ray_local: None) -> None:
    found = find_set(sets / "real")
    ears = Ears(tiny_model, None, 1.0, ("vggish", published_weights / "vggish.pth"))
    here, there = hear(found, ears), hear(found, ears, workers=1)
    for name, heard in here.items():
        np.testing.assert_allclose(there[name].clap_ND, heard.clap_ND, atol=1e-5)
        assert heard.published_NPD is not None
        assert heard.published_NPD.shape == (8, 1, 128)
        np.testing.assert_allclose(there[name].published_NPD, heard.published_NPD, rtol=1e-3, atol=1e-3)
        assert there[name].places == heard.places


@pytest.mark.parametrize(("space", "told"), [("vggish", "VGGish at 16 kHz"), ("panns", "PANNs' Cnn14 at 16 kHz")])
def test_published_networks_measure_with_the_users_weights(
    space: str, told: str, sets: Path, tiny_model: Path, published_weights: Path, tmp_path: Path
) -> None:
    fads = {}
    for name in ("good", "swapped"):
        whole = ("--reference", sets / "real", "--generated", sets / name, "--clap", tiny_model, "--seconds", 1)
        printed = foley(*whole, "--out", tmp_path / name, "--space", space, "--weights", published_weights / f"{space}.pth")
        report = json.loads((tmp_path / name / "report.json").read_text())
        fads[name] = report["mean"]["fad"]["generated"][0]
    assert fads["good"] < fads["swapped"]
    digest = hashlib.sha256((published_weights / f"{space}.pth").read_bytes()).hexdigest()[:16]
    for text in (printed, (tmp_path / "swapped" / "report.md").read_text(), (tmp_path / "swapped" / "report.html").read_text()):
        assert escape(told) in text or told in text
        assert digest in text
        assert "not with the published weights" in text
    assert "the same at 16000 Hz" in report["how"]["clips"]
    _, clap, _ = evaluated(sets, "swapped", tiny_model)
    assert report["how"]["yardstick"] != clap["how"]["yardstick"]
    assert report["mean"]["clap_score"]["generated"] == pytest.approx(clap["mean"]["clap_score"]["generated"], abs=1e-4)


def test_fad_pools_patches_and_the_rest_takes_their_mean() -> None:
    real_NPD, made_NPD = (np.random.default_rng(seed).standard_normal((12, 3, 4)) + seed for seed in (0, 1))
    recordings = np.arange(12)
    real, made = (Features(x.mean(axis=1), recordings, patches_NPD=x) for x in (real_NPD, made_NPD))
    numbers, reached = made_numbers(real, made), real_numbers(real, 6)
    assert numbers["fad"].value == pytest.approx(metrics.fad(real_NPD.reshape(36, 4), made_NPD.reshape(36, 4)))
    assert numbers["kad"].value == pytest.approx(metrics.kad(real_NPD.mean(axis=1), made_NPD.mean(axis=1)).value)
    assert numbers["clips"] == 12
    half = held_part(recordings, 6)
    assert reached["fad"] == pytest.approx(metrics.fad(real_NPD[~half].reshape(18, 4), real_NPD[half].reshape(18, 4)))


def test_a_class_that_the_classifier_does_not_judge_has_no_accuracy(
    sets: Path, tiny_model: Path, judge: Classifier, judged_dataset: Path, tmp_path: Path
) -> None:
    judge.save(tmp_path / "judge")
    write_set(tmp_path / "made", 3, {"rain": 1, "bright": 1})
    write_set(tmp_path / "real", 4, {"rain": 1, "bright": 1})
    told = foley(
        "--reference", tmp_path / "real", "--generated", tmp_path / "made", "--out", tmp_path / "out", "--clap", tiny_model,
        "--classifier", tmp_path / "judge", "--seconds", 1,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rain, bright = (report["classes"][name] for name in ("rain", "bright"))
    assert all("accuracy" not in bright[side] for side in ("generated", "real"))
    assert report["mean"]["accuracy"]["classes"] == 1
    assert report["mean"]["accuracy"]["generated"][0] == rain["generated"]["accuracy"][0]
    assert report["mean"]["accuracy"]["real"] == rain["real"]["accuracy"][0]
    assert "bright: not one of the classes that the classifier judges" in told
    assert "rain: not one of" not in told


def test_runs_are_compared_only_by_one_yardstick(sets: Path, tiny_model: Path) -> None:
    reports = [evaluated(sets, name, tiny_model)[2] / "report.json" for name in ("good", "swapped")]
    told = foley("--compare", reports[0], "--compare", reports[1], "--out", sets / "compared")
    assert "out_good" in told
    assert "out_swapped" in told
    assert "FAD and coverage depend on the number of clips" in (sets / "compared" / "report.md").read_text()
    assert (sets / "compared" / "report.html").read_text().count("<table>") == 8
    other = json.loads(reports[0].read_text())
    other["how"]["yardstick"] = "another"
    (sets / "other.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="cannot be compared"):
        load_runs([reports[0], sets / "other.json"])


def test_only_a_published_clap_is_comparable_with_what_others_publish() -> None:
    own = ModelInfo(preset="tiny", model=tiny().model)
    imported = ModelInfo(preset="tiny", model=tiny().model.model_copy(update={"clap": RobertaClapConfig()}))
    assert _space("clap", own, None, None)["comparable"].startswith("not comparable")
    assert _space("clap", imported, None, None)["comparable"].startswith("comparable with figures of the same CLAP")
    assert _space("classifier", imported, "judge", None)["comparable"].startswith("not comparable")


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        (["--reference", "real"], ConfigError, "give --reference, --generated and --out"),
        (["--generated", "nowhere"], FoleyError, "no folder"),
        (["--map", "bright=dark"], DataError, "no class dark"),
        (["--map", "brigth=dark"], DataError, "no class brigth to map"),
        (["--class", "dark"], ConfigError, "dark is not in"),
        (["--split", "test"], ConfigError, "train or eval"),
        (["--split", "eval"], DataError, "no dataset"),
        (["--space", "vgg"], ConfigError, "must be clap, classifier, vggish or panns"),
        (["--space", "classifier"], ConfigError, "needs a --classifier folder"),
        (["--space", "vggish"], ConfigError, "needs --weights FILE: vggish-10086976.pth, .* harritaylor/torchvggish"),
        (["--space", "panns", "--weights", "x.npz"], ModelError, "no file of weights.*--space panns needs Cnn14_mAP=0.431.pth"),
        (["--weights", "w.pth"], ConfigError, "goes with --space vggish or panns, not clap"),
        (["--reference", "x.npz"], ConfigError, "embeddings compare with embeddings"),
        (
            ["--reference", "x.npz", "--generated", "x.npz", "--space", "vggish", "--weights", "w.pth"],
            ConfigError,
            "--space is for sounds",
        ),
        (["--reference", "x.npz", "--generated", "x.npz", "--classifier", "c"], ConfigError, "--classifier is for sounds"),
        (["--reference", "x.npz", "--generated", "x.npz"], ConfigError, "--clap is for sounds; .* leave it out"),
        (["--compare", "one.json"], ConfigError, "two or more"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], kind: type, told: str, sets: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sets)
    np.savez("x.npz", bright=np.eye(3))
    whole = ["--reference", "real", "--generated", "good", "--out", "o", "--clap", tiny_model, "--seconds", 1]
    with pytest.raises(kind, match=told):
        foley(*([] if arguments == ["--reference", "real"] else whole), *arguments)
