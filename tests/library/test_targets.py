"""Audio targets of a plan: which clip gets which, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sounds import encoded, halve, save, tone

from foley_ray.data.manifest import ROW_SCHEMA, DatasetInfo
from foley_ray.errors import ConfigError, SourceError
from foley_ray.library.outline import outline
from foley_ray.library.plan import expand, load_plan
from foley_ray.library.targets import find_targets

PLAN = """\
library: Motors
creator: FRAY
source: MOTORS
date: 2026-11-20
categories:
  - {catid: RAIN, name: Rain, prompts: [rain]}
  - {catid: VEHMisc, name: Motor, prompts: [a motor, "an engine"], seeds: 2, targets: motors}
"""


def found(folder: Path, plan: str = PLAN) -> list[str | None]:
    """Name of each clip's target, in plan order."""
    (folder / "plan.yaml").write_text(plan)
    loaded = load_plan(folder / "plan.yaml")
    clips = expand(loaded, "model")
    targets = find_targets(loaded, clips, folder)
    for target in targets.values():
        assert target.read()
    return [targets[clip.id].name if clip.id in targets else None for clip in clips]


@pytest.fixture
def motors(tmp_path: Path) -> Path:
    for index in (3, 1, 2, 0):
        save(tmp_path / "motors" / ("far" if index == 3 else "near") / f"{index}.wav", tone(hz=100 + index, duration_s=0.2))
    save(tmp_path / "motors" / ".thumbs" / "x.wav")
    return tmp_path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six rows of motors, the third of them for judging, and one of rain."""
    rows = [
        {
            **dict.fromkeys(ROW_SCHEMA.names, ""),
            "audio": encoded(hz=200 + index),
            "class": "rain" if index == 6 else "motor",
            "split": "eval" if index == 2 else "train",
            "source": f"{index}.wav",
            "duration_s": 0.2,
            "sample_rate_hz": 22050,
            "shippable": True,
            "other_captions": [],
        }
        for index in range(7)
    ]
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((rows[:4], rows[4:])):
        pq.write_table(pa.Table.from_pylist(part, ROW_SCHEMA), folder / "data" / f"{number}.parquet")
    DatasetInfo(
        sample_rate_hz=22050,
        counts={"train": {"motor": 5, "rain": 1}, "eval": {"motor": 1}},
        classes=("motor", "rain"),
        shippable_rows=7,
        quarantined={},
        straddling_recordings=0,
        hours=0.0,
        source="here",
        digest="0",
    ).save(folder)
    return tmp_path


def test_every_clip_of_the_category_has_a_sound_of_its_own_in_name_order(motors: Path) -> None:
    assert found(motors) == [None, "far/3.wav", "near/0.wav", "near/1.wav", "near/2.wav"]


def test_a_class_of_a_dataset_gives_its_training_recordings(dataset: Path) -> None:
    assert found(dataset, PLAN.replace("targets: motors", "targets: dataset:motor"))[1:] == ["0.wav", "1.wav", "3.wav", "4.wav"]
    assert found(dataset, PLAN.replace("targets: motors", f"targets: '{dataset}/dataset:motor'"))[1] == "0.wav"


def test_the_outline_shows_them(motors: Path) -> None:
    (motors / "plan.yaml").write_text(PLAN)
    lines = list(outline(motors / "plan.yaml", None, None, all_clips=False))
    assert "    VEHMisc_Motor 02_FRAY_MOTORS  'a motor' seed 1, target near/0.wav" in lines
    assert "    RAIN_Rain 01_FRAY_MOTORS  'rain' seed 0" in lines


def test_targets_change_no_id(motors: Path) -> None:
    ids = []
    for text in (PLAN, PLAN.replace(", targets: motors", "")):
        (motors / "plan.yaml").write_text(text)
        ids.append([clip.id for clip in expand(load_plan(motors / "plan.yaml"), "model")])
    assert ids[0] == ids[1]


def test_a_budget_needs_targets_for_the_clips_that_it_leaves(motors: Path) -> None:
    (motors / "motors/near/2.wav").unlink()
    with pytest.raises(ConfigError, match=r"categories.1 \(VEHMisc\), targets motors: 3 sounds for 4 clips, but each"):
        found(motors)
    assert found(motors, PLAN + "budget: {clips: 4}\n") == [None, "far/3.wav", "near/0.wav", "near/1.wav"]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("motrs", r"targets motrs: no folder at .*motrs; give a folder of sound files, or DATASET:CLASS"),
        ("dataset", r"a dataset needs a class, as dataset:motor"),
        ("dataset:moter", r"has no class 'moter'; it has motor, rain"),
        ("nowhere:motor", r"no folder at .*nowhere:motor"),
        ("empty", r"no sound files in .*empty; targets are .aac"),
    ],
)
def test_what_is_no_target_is_named(targets: str, said: str, motors: Path, dataset: Path) -> None:
    (motors / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        found(motors, PLAN.replace("targets: motors", f"targets: '{targets}'"))


def test_a_sound_that_cannot_be_heard_is_named_before_the_night(motors: Path) -> None:
    place = motors / "motors/near/1.wav"
    save(place, np.zeros(2000))
    with pytest.raises(SourceError, match=r"\(VEHMisc\), targets motors: near/1.wav has no sound in it: leave it out"):
        found(motors)
    halve(place)
    place.write_bytes(b"RIFF")
    with pytest.raises(SourceError, match=r"near/1.wav is no readable sound"):
        found(motors)


def test_a_target_that_changes_under_way_is_noticed(motors: Path) -> None:
    (motors / "plan.yaml").write_text(PLAN)
    plan = load_plan(motors / "plan.yaml")
    clips = expand(plan, "model")
    target = find_targets(plan, clips, motors)[clips[1].id]
    save(target.path, tone(hz=999))
    with pytest.raises(SourceError, match=r"far/3.wav changed while the library was built"):
        target.read()
