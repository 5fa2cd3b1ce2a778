"""Embeddings of somebody else: read as arrays, never as pickles; and the whole evaluation where the answers are known."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from foley_ray.errors import DataError
from foley_ray.evaluation.evaluate import evaluate_embeddings
from foley_ray.evaluation.precomputed import is_embeddings, read_embeddings


def test_a_file_of_classes_a_folder_of_classes_and_a_folder_per_class_read_alike(tmp_path: Path) -> None:
    values = {"rain": np.arange(6.0).reshape(3, 2), "bell": np.ones((2, 2), np.float32)}
    np.savez(tmp_path / "all.npz", **values)
    for name, value in values.items():
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "flat").mkdir(exist_ok=True)
        np.save(tmp_path / "flat" / f"{name}.npy", value)
        np.savez(tmp_path / "deep" / name / "gt_embedding.npz", value)
    for where in ("all.npz", "flat", "deep"):
        assert is_embeddings(tmp_path / where)
        found = read_embeddings(tmp_path / where)
        assert found.keys() == values.keys()
        np.testing.assert_array_equal(found["rain"], values["rain"])


def test_pickles_are_refused_in_every_disguise_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "gt_embedding.pkl").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "folder" / "rain").mkdir(parents=True)
    (tmp_path / "folder" / "rain" / "gt_embedding.pkl").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "objects.npz", rain=np.array([Trap()], dtype=object))
    (tmp_path / "named.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("gt_embedding.pkl", "folder", "objects.npz", "named.npz"):
        assert is_embeddings(tmp_path / name)
        with pytest.raises(DataError, match=r"pickles can run code when opened .* convert it once"):
            read_embeddings(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"rain": np.ones(4)}, "must be clips x values"),
        ({"rain": np.array([[1.0, np.nan]])}, "all finite"),
        ({"rain": np.array([["a"]])}, "must be clips x values"),
        ({"rain": np.ones((3, 2)), "bell": np.ones((3, 4))}, "of one width"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(arrays: dict, told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=told):
        read_embeddings(tmp_path / "x.npz")


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_known_distances_come_out(tmp_path: Path) -> None:
    """Moved by (3, 0, 0, 0) the squared distance of equal Gaussians is 9; a set and itself are at 0."""
    x = np.random.default_rng(0).standard_normal((400, 4))
    reference = save(tmp_path / "reference.npz", moved=x, same=x, unused=x)
    report = evaluate_embeddings(reference, save(tmp_path / "made.npz", moved=x + np.array([3, 0, 0, 0]), same=x))
    assert list(report["classes"]) == ["moved", "same"]
    moved, same = (report["classes"][name]["generated"] for name in ("moved", "same"))
    assert moved["fad"].value == pytest.approx(9)
    assert moved["fad_inf"] == pytest.approx(9, abs=0.5)
    assert same["fad"].value == pytest.approx(0, abs=1e-9)
    assert same["kad"].value <= 0
    assert same["coverage"].value == 1
    assert same["nearest"].value == pytest.approx(0, abs=1e-9)
    assert report["mean"]["fad"]["generated"].value == pytest.approx(4.5)
    real = report["classes"]["same"]["real"]
    assert real["part"] == 200
    assert 0 < real["fad"] < 0.2  # two halves of one distribution are not at 0
    assert real["nearest"] > 0


def test_other_classes_and_other_widths_are_refused(tmp_path: Path) -> None:
    reference = save(tmp_path / "reference.npz", rain=np.eye(4))
    with pytest.raises(DataError, match="has no class bell"):
        evaluate_embeddings(reference, save(tmp_path / "a.npz", bell=np.eye(4)))
    with pytest.raises(DataError, match="two spaces"):
        evaluate_embeddings(reference, save(tmp_path / "b.npz", rain=np.eye(5)))
    with pytest.raises(DataError, match="single clip of rain"):
        evaluate_embeddings(reference, save(tmp_path / "c.npz", rain=np.ones((1, 4))))
