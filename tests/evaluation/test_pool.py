"""A pool of real candidates of a tiny model, and every question of jobs/experiments asked of it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foley_ray.config import ClipSettings
from foley_ray.data.manifest import ROW_SCHEMA, DatasetInfo
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import DataError, OutputError
from foley_ray.evaluation.classifier import train_classifier
from foley_ray.evaluation.pool import Pool, PoolJob, make_pool
from foley_ray.evaluation.question import QuestionJob, judged, write_answer
from foley_ray.evaluation.recordings import read_recordings
from foley_ray.pipeline import Pipeline
from foley_ray.presets import tiny

SPEC = tiny().model.audio
PROMPTS = {"dog_bark": ("a dog bark", "woof"), "rain": ("rain", "heavy rain")}
JOBS = Path(__file__).parents[2] / "jobs" / "experiments"


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool, one around the tuning layer, a dataset, and a classifier that belongs to it."""
    folder = tmp_path_factory.mktemp("experiments")
    clip = ClipSettings(steps=2, duration_s=SPEC.clip_s)
    for name, tuning in (("pool", True), ("untuned", False)):
        make_pool(
            PoolJob(model=tiny_model, out=folder / name, prompts=PROMPTS, candidates=3, clip=clip, tuning=tuning),
            lambda _: None,
        )
    write_recordings(folder / "recordings", count_per_class=6)
    rows = []
    for name in PROMPTS:
        for index, path in enumerate(sorted((folder / "recordings" / "clips" / name).glob("*"))):
            row = dict.fromkeys(ROW_SCHEMA.names, "") | {"sample_rate_hz": 22050, "duration_s": 1.0, "shippable": True}
            row |= {"audio": path.read_bytes(), "class": name, "caption": name, "split": "eval" if index < 2 else "train"}
            rows.append(row | {"recording": str(path), "sha256": str(path), "other_captions": []})
    (folder / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / "dataset" / "data" / "part.parquet")
    DatasetInfo(
        sample_rate_hz=22050, counts={"train": {}, "eval": {}}, classes=tuple(PROMPTS), shippable_rows=len(rows),
        quarantined={}, straddling_recordings=0, hours=0, source="here", digest="d",
    ).save(folder / "dataset")  # fmt: skip
    recordings = read_recordings(folder / "dataset", SPEC)
    train_classifier(recordings, SPEC, tuple(PROMPTS), "d", copies=1, epochs=20, progress=lambda _: None).save(folder / "judge")
    return folder


def test_a_pool_holds_the_candidates_that_the_pipeline_would_make(place: Path, tiny_model: Path) -> None:
    from foley_ray.clip import ClipRequest

    pool = Pool.load(place / "pool")
    assert list(pool.classes) == list(PROMPTS)
    woof = pool.classes["dog_bark"]
    settings = ClipSettings(steps=2, duration_s=SPEC.clip_s, candidates=3)
    (clip,) = Pipeline(tiny_model).generate([ClipRequest("woof", 1, settings)])
    np.testing.assert_allclose(woof.score_N[woof.prompt_N == 1], clip.scores, atol=1e-4)
    np.testing.assert_allclose(woof.wave_NT[3 + clip.best.index], clip.wave_T, atol=1e-3)
    np.testing.assert_allclose((woof.audio_ND * woof.text_ND).sum(axis=1), woof.score_N, atol=1e-4)


def test_a_rerun_makes_only_what_is_missing_and_mixes_nothing(place: Path, tiny_model: Path) -> None:
    clip = ClipSettings(steps=2, duration_s=SPEC.clip_s)
    job = PoolJob(model=tiny_model, out=place / "pool", prompts=PROMPTS, candidates=3, clip=clip)
    (place / "pool" / "rain.npz").rename(place / "rain.npz")
    with pytest.raises(DataError, match="no whole pool"):
        Pool.load(place / "pool")
    told: list[str] = []
    make_pool(job, told.append)
    assert told == ["rain: 6 candidates (1 of 1 classes)"]
    for before, after in zip(*(np.load(x / "rain.npz").values() for x in (place, place / "pool")), strict=True):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(OutputError, match="another model or other settings"):
        make_pool(job.model_copy(update={"seed": 1}))
    with pytest.raises(OutputError, match="is no pool"):
        make_pool(job.model_copy(update={"out": place / "recordings"}))


def test_candidates_are_drawn_without_repeats_and_the_best_is_the_best(place: Path) -> None:
    candidates = Pool.load(place / "pool").classes["rain"]
    rows_PK = candidates.drawn(2, np.random.default_rng(0))
    assert rows_PK.shape == (2, 2)
    assert all(len(set(rows)) == 2 for rows in rows_PK)
    assert (candidates.prompt_N[rows_PK] == [[0, 0], [1, 1]]).all()
    best_P = candidates.best(candidates.drawn(3, np.random.default_rng(0)))
    assert [candidates.score_N[row] for row in best_P] == [candidates.score_N[:3].max(), candidates.score_N[3:].max()]


@pytest.mark.parametrize("question", ["count", "wordings", "targets", "tuning", "sweep", "texts"])
def test_every_question_is_answered(
    question: str, place: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    job = QuestionJob(
        pool=place / "pool", other_pool=place / "untuned", data=place / "dataset", classifier=place / "judge",
        model=tiny_model, out=place / "answers", draws=4,
    )  # fmt: skip
    runpy.run_path(str(JOBS / f"{question}.py"))["main"](job)
    answer = json.loads((place / "answers" / f"{question}.json").read_text())
    assert answer["asked"] in capsys.readouterr().out
    assert len(answer["rows"]) >= 2
    assert (place / "answers" / f"{question}.md").read_text().startswith("# ")
    assert (place / "answers" / f"{question}.png").stat().st_size > 5000
    if question == "count":
        one, three = answer["rows"]
        assert (one["candidates"], three["candidates"]) == (1, 3)
        assert three["CLAP score"][0] > one["CLAP score"][0]
        assert three["CLAP score"][1] == pytest.approx(three["CLAP score"][2])  # three of three: no chance left


def test_a_pool_that_the_judge_does_not_know_is_refused(place: Path, tiny_model: Path) -> None:
    clip = ClipSettings(steps=1, duration_s=SPEC.clip_s)
    make_pool(
        PoolJob(model=tiny_model, out=place / "bell", prompts={"bell": ("a bell",)}, candidates=2, clip=clip), lambda _: None
    )
    with pytest.raises(DataError, match="does not judge bell"):
        judged(place / "bell", place / "dataset", place / "judge")


def test_an_answer_is_a_table_a_plot_and_numbers(tmp_path: Path) -> None:
    rows = [{"n": 1, "x": [0.5, 0.4, 0.6], "y": 0.25}, {"n": 3, "x": [0.7, 0.6, 0.8], "y": 0.5}]
    text = write_answer(tmp_path, "a", "Why?", rows, ["x", "y"], "n")
    assert "| 1 | 0.500 [0.400, 0.600] | 0.250 |" in text
    grouped = [{**row, "n": n, "kind": kind} for row in rows for kind in ("on", "off") for n in (0.1, 0.7)]
    write_answer(tmp_path, "b", "Why?", grouped, ["x", "y"], "n", by="kind")
    assert {path.name for path in tmp_path.glob("*.png")} == {"a.png", "b.png"}
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == rows
