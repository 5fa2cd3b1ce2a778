from pathlib import Path

import numpy as np
import pytest

from foley_ray.errors import DatasetError, ModelError
from foley_ray.evaluation.classifier import (
    FOLDS,
    INFO_FILE,
    OTHER,
    WEIGHTS_FILE,
    Classifier,
    ClassifierInfo,
    fit_net,
    folds,
    likeliest,
    train_classifier,
)
from foley_ray.evaluation.recordings import Recording, clips
from foley_ray.presets import tiny
from foley_ray.spec import AudioSpec

SPEC = tiny().model.audio
JUDGED = ("dog_bark", "gunshot", "rain")


def held_out(recordings: list[Recording]) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in recordings if row.split == "eval"]
    return clips([row.wave_T for row in rows], SPEC), np.array([row.class_name for row in rows])


def test_it_knows_procedural_sounds_it_has_not_heard(judge: Classifier, recordings: list[Recording]) -> None:
    wave_NT, names = held_out(recordings)
    among_judged, among_all = judge.predict(wave_NT)
    assert (among_all == names).mean() >= 0.8
    assert set(among_judged) == set(JUDGED)
    for name in JUDGED:
        right = judge.info.held_out[name]
        assert (right.judged, right.of) == ((among_judged[names == name] == name).sum(), 2)
        crossed = judge.info.cross_validated[name]
        assert crossed.of == 8
        assert crossed.judged >= crossed.all >= 5


def test_it_is_saved_and_loaded(judge: Classifier, recordings: list[Recording], tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    again = Classifier.load(tmp_path / "judge")
    assert again.info == judge.info
    wave_NT, _ = held_out(recordings)
    np.testing.assert_array_equal(again.log_probabilities(wave_NT), judge.log_probabilities(wave_NT))
    np.testing.assert_array_equal(again.embed(wave_NT), judge.embed(wave_NT))
    (tmp_path / "judge" / WEIGHTS_FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="train it again"):
        Classifier.load(tmp_path / "judge")
    (tmp_path / "judge" / INFO_FILE).write_text("{}")
    with pytest.raises(ModelError, match="classes"):
        Classifier.load(tmp_path / "judge")


def test_a_clip_does_not_depend_on_the_company_it_keeps(judge: Classifier, recordings: list[Recording]) -> None:
    wave_NT, _ = held_out(recordings)
    np.testing.assert_allclose(judge.log_probabilities(wave_NT)[3:4], judge.log_probabilities(wave_NT[3:4]), atol=1e-4)
    assert [answer.shape for answer in judge.predict(wave_NT[:0])] == [(0,), (0,)]


def test_training_is_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(0)
    feature_ND, names = rng.standard_normal((30, 5)).astype(np.float32), np.array(["a", "b", OTHER] * 10)

    def weights(seed: int) -> np.ndarray:
        net = fit_net(feature_ND, names, ("a", "b", OTHER), seed, epochs=2)
        return net.members[0][1].weight.detach().numpy()

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_folds_keep_recordings_whole() -> None:
    rows = [Recording(np.zeros(1), "rain", "train", f"storm {i // 3}", str(i), True) for i in range(30)]
    fold_N = folds(rows, seed=0)
    assert set(fold_N) == set(range(FOLDS))
    for start in range(0, 30, 3):
        assert len(set(fold_N[start : start + 3])) == 1


def test_the_judged_classes_share_half_of_the_prior() -> None:
    info = ClassifierInfo(spec=AudioSpec(), classes=("a", "b", "c", OTHER), judged=("a",), seed=0, dataset="", train_clips=1)
    flat = np.log(np.full((1, 4), 0.25))
    assert likeliest(flat, info)[1] == ["a"]
    assert likeliest(np.log([[0.2, 0.55, 0.2, 0.05]]), info)[1] == ["a"]  # 0.2 * 3 > 0.55
    assert likeliest(np.log([[0.1, 0.7, 0.1, 0.1]]), info) == (["a"], ["b"])


def test_a_class_without_train_rows_is_refused(recordings: list[Recording]) -> None:
    with pytest.raises(DatasetError, match="no train rows of class volcano"):
        train_classifier(recordings, SPEC, ["rain", "volcano"], "")
    with pytest.raises(DatasetError, match="kin names gunshot"):
        train_classifier(recordings, SPEC, ["rain"], "", {"bell": "gunshot"})


def test_kin_teach_a_class_but_do_not_count_as_it(recordings: list[Recording]) -> None:
    taught = train_classifier(recordings, SPEC, JUDGED, "", {"bell": "rain"}, copies=0, epochs=60, progress=lambda line: None)
    assert "bell" not in taught.info.classes
    assert taught.info.held_out["rain"].of == 2
    bells = clips([row.wave_T for row in recordings if row.class_name == "bell" and row.split == "eval"], SPEC)
    assert list(taught.predict(bells)[1]) == ["rain", "rain"]
