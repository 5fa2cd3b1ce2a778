"""Thresholds from real clips: the quantile that was asked for, and what else would pass it."""

from pathlib import Path

import numpy as np
import pytest
from sounds import save, tone
from typer.testing import CliRunner

from foley_ray.checkpoint import read_info
from foley_ray.cli import app
from foley_ray.errors import ConfigError, DataError
from foley_ray.evaluation.calibrate import as_yaml, calibrate
from foley_ray.thresholds import load_thresholds, threshold_of


def at_angle(cosines: np.ndarray) -> np.ndarray:
    """(N, 2) unit vectors with these cosines to (1, 0)."""
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def test_a_known_quantile_and_a_known_share_of_others() -> None:
    audio = {"dog": at_angle(np.linspace(0.5, 0.9, 101)), "cat": at_angle(np.linspace(0.44, 0.64, 101))}
    found = calibrate(audio, {"dog": np.array([[1.0, 0.0]])}, 0.25)["dog"]
    assert found.threshold.value == pytest.approx(0.6)
    assert found.threshold.low < 0.6 < found.threshold.high
    assert found.others_pass is not None
    assert found.others_pass.value == pytest.approx(0.2, abs=0.01)


def test_every_wording_counts() -> None:
    audio = {"dog": np.repeat([[1.0, 0.0]], 10, axis=0)}
    found = calibrate(audio, {"dog": np.array([[1.0, 0.0], [0.0, 1.0]])}, 0.4)["dog"]
    assert found.threshold.value == 0
    assert found.others_pass is None


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(DataError, match="class dog has 4 clips"):
        calibrate({"dog": np.eye(4)}, {"dog": np.eye(4)})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    audio = {"dog": at_angle(np.linspace(0.5, 0.9, 50)), "cat": at_angle(np.linspace(0, 0.3, 50))}
    found = calibrate(audio, {"dog": np.array([[1.0, 0.0]])})
    (tmp_path / "t.yaml").write_text(as_yaml(found, "12345678", 0.1, ["how: it's made"]))
    assert load_thresholds(tmp_path / "t.yaml").clap == "12345678"  # digits alone stay text
    assert threshold_of("t.yaml:dog", tmp_path) == pytest.approx(found["dog"].threshold.value, abs=1e-4)
    assert "0 % of other" in (tmp_path / "t.yaml").read_text().replace("%", " %")


def test_class_names_that_yaml_takes_for_something_else_stay_text(tmp_path: Path) -> None:
    names = ["2023", "no", "1e3", "Tür: #1", 'a "b"']
    found = calibrate({name: at_angle(np.linspace(0.5, 0.9, 5)) for name in names}, {name: np.eye(1, 2) for name in names})
    (tmp_path / "t.yaml").write_text(as_yaml(found, "12345678", 0.1, []), encoding="utf-8")
    assert list(load_thresholds(tmp_path / "t.yaml").thresholds) == names


def test_from_the_shell(tiny_model: Path, tmp_path: Path) -> None:
    for name, hz in (("low", 200), ("high", 2000)):
        for index in range(6):
            save(tmp_path / "real" / name / f"{index}.wav", tone(hz=hz + 20 * index, duration_s=1.0))
    (tmp_path / "words.yaml").write_text("low: [a low tone]\nhigh: [a high tone, whistling]\n")
    arguments = ["--reference", tmp_path / "real", "--out", tmp_path / "t.yaml", "--clap", tiny_model, "--seconds", 1]
    with pytest.raises(ConfigError, match="no captions to score against"):
        CliRunner().invoke(app, ["calibrate", *map(str, arguments)], catch_exceptions=False)
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments), "--prompts", str(tmp_path / "words.yaml")])
    assert result.exit_code == 0, result.output
    found = load_thresholds(tmp_path / "t.yaml")
    assert found.thresholds.keys() == {"low", "high"}
    assert found.clap == read_info(tiny_model).parts["clap"].digest


def test_classes_that_cannot_be_calibrated_are_left_out_or_named(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("low", "high", "thin", "untold"):
        for index in range(5):
            silent = name == "thin" and index == 0
            save(tmp_path / "real" / name / f"{index}.wav", (0 if silent else 1) * tone(hz=300 + 20 * index, duration_s=0.5))
    (tmp_path / "words.yaml").write_text("low: [a low tone]\nhigh: [a high tone]\nthin: [a thin tone]\n")

    def run(*arguments: str) -> str:
        given = {"--reference": tmp_path / "real", "--out": tmp_path / "t.yaml", "--clap": tiny_model, "--seconds": 1}
        given |= {"--prompts": tmp_path / "words.yaml"}
        told = CliRunner().invoke(
            app, ["calibrate", *(str(item) for pair in given.items() for item in pair), *arguments], catch_exceptions=False
        )
        assert told.exit_code == 0, told.output
        return told.output

    assert "left out, without wordings or with fewer than 5 clips that sound: thin, untold" in " ".join(run().split())
    assert load_thresholds(tmp_path / "t.yaml").thresholds.keys() == {"low", "high"}
    with pytest.raises(ConfigError, match=r"words.yaml has no wordings of untold to score against; it has low, high, thin"):
        run("--class", "low", "--class", "untold")
    with pytest.raises(DataError, match="class thin has 4 clips, a threshold needs at least 5"):
        run("--class", "low", "--class", "thin")
    (tmp_path / "words.yaml").write_text("thin: [a thin tone]\n")
    with pytest.raises(DataError, match=r"no class of .*real has wordings and 5 clips that sound"):
        run()
