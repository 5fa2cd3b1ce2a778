"""`foley finetune`: what is refused before anything starts, and once, with Ray, the whole way from ten files to a model."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sounds import save, tone

from foley_ray.checkpoint import load_part, read_info
from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings, TuningConfig
from foley_ray.data.sources import read_source
from foley_ray.errors import ConfigError, SourceError
from foley_ray.interchange.finetune import Wish, captioned, check_recordings, finetune, made_of, plan
from foley_ray.pipeline import Pipeline


def recordings(folder: Path, count: int = 10) -> Path:
    for number in range(count):
        save(folder / f"take {number}.wav", tone(duration_s=1.2, hz=200 + 30 * number))
    return folder


def test_settings_for_few_recordings(tiny_model: Path, tmp_path: Path) -> None:
    info = read_info(tiny_model)
    wish = Wish(tmp_path, tiny_model, tmp_path / "run", settings={"steps": 3})
    chosen, settings = plan(wish, info)
    assert chosen.model == info.model
    assert (settings.steps, settings.lr, settings.lora_rank) == (3, 1e-5, None)
    assert plan(Wish(tmp_path, tiny_model, tmp_path / "run", lora_rank=4), info)[1].lr == 1e-4
    without = Wish(tmp_path, tiny_model, tmp_path / "run", tuning=TuningConfig(kind="none"))
    with pytest.raises(ConfigError, match="has a tuning layer"):
        plan(without, info)
    bare = info.model_copy(update={"parts": {name: part for name, part in info.parts.items() if name != "tuning"}})
    assert plan(without, bare)[0].model.tuning.kind == "none"
    with pytest.raises(ConfigError, match="stepps: no such setting"):
        plan(Wish(tmp_path, tiny_model, tmp_path / "run", settings={"stepps": 3}), info)


def test_recordings_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder of recordings"):
        check_recordings(tmp_path / "typo", None)
    with pytest.raises(SourceError, match="no sound files"):
        check_recordings(tmp_path, None)
    with pytest.raises(SourceError, match=r"9 recordings in .*, fewer than 10"):
        check_recordings(recordings(tmp_path / "few", 9), "a dog bark")
    folder = recordings(tmp_path / "flat")
    with pytest.raises(SourceError, match=r"--caption .*folder per class.*metadata.csv"):
        check_recordings(folder, None)
    check_recordings(folder, "a dog bark")
    check_recordings(tmp_path, None)  # a folder with a class's folder


@pytest.mark.parametrize("caption", ["die Tür knarrt, sehr laut!", "雨が降る", 'a "dog"\'s bark ' + "and on " * 9 + "and on"])
def test_a_caption_is_learned_as_it_was_given(tmp_path: Path, caption: str) -> None:
    folder = recordings(tmp_path / "flat", 2)
    save(folder / "deeper" / "a.wav").rename(folder / "deeper" / os.fsdecode(b"caf\xe9, 1.wav"))
    save(folder / ".hidden" / "a.wav")
    found, rows = read_source(captioned(folder, caption, tmp_path / "named"))
    assert found == "metadata: metadata.csv"
    assert [row.captions for row in rows] == [(caption,)] * 3
    assert all((tmp_path / "named" / row.place.name).is_file() for row in rows)
    assert len({row.class_name for row in rows}) == 1


def test_what_a_run_is_made_of(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "flat")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    wish = Wish(folder, tmp_path, folder / "run", caption="a dog bark")
    first = made_of(wish)
    captioned(folder, "a dog bark", folder / "run" / "recordings")
    assert made_of(wish) == first  # what lies in RUN is not of the recordings
    assert made_of(replace(wish, caption="a cat")) != first
    assert made_of(replace(wish, recordings=elsewhere)) == first
    save(folder / "take 3.wav", tone(duration_s=1.2, hz=291))  # of the same name and size
    assert made_of(wish) != first


@pytest.mark.cluster
@pytest.mark.parametrize("lora", [None, 2])
def test_ten_files_to_a_model_that_differs_where_it_should(
    ray_local: None, tiny_model: Path, tmp_path: Path, lora: int | None
) -> None:
    wish = Wish(
        recordings(tmp_path / "flat"),
        tiny_model,
        tmp_path / "run",
        caption="a Dog's bark",
        lora_rank=lora,
        settings={"steps": 3, "lr": 1e-3, "warmup_steps": 0, "batch_size": 2, "log_every": 1},
        variants=2,
    )
    said: list[str] = []
    info = finetune(wish, said.append)
    assert any("10 recordings" in line for line in said)
    before = read_info(tiny_model)
    changed = {name for name in info.parts if info.parts[name].digest != before.parts[name].digest}
    assert changed == {"unet", "tuning"}
    assert info.sounds == before.sounds | {"a_dog_s_bark": ("a Dog's bark",)}
    assert info.originals is not None
    assert info.originals.rows >= before.originals.rows + 10  # what the given model learned from is not forgotten
    assert not any("lora" in name for name in load_part(tmp_path / "run" / "model", "unet").state_dict())
    settings = ClipSettings(duration_s=0.5, steps=2, candidates=1)
    clip = next(Pipeline(tmp_path / "run" / "model").generate([ClipRequest("a dog bark", 1, settings)]))
    assert np.isfinite(clip.wave_T).all()
    assert finetune(wish).digest == info.digest  # finished: the same command has nothing left to do
    with pytest.raises(ConfigError, match=r"run was made with other settings: caption was a Dog's bark, now a cat; choose"):
        finetune(replace(wish, caption="a cat"))
