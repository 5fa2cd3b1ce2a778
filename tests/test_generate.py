import json
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.errors import OutputError, PromptError
from foley_ray.generate import check_writable, missing, read_prompts, requests_for, write_clip
from foley_ray.pipeline import Pipeline

FAST = ClipSettings(duration_s=0.5, steps=2, candidates=2)


def test_a_clip_becomes_wav_picture_and_json(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_model)
    clip = next(pipeline.generate([ClipRequest("A dog, barking!", 7, FAST)]))
    path = write_clip(tmp_path, 3, clip, pipeline.info)
    assert path.name == "003_a_dog_barking_seed7.wav"
    assert {item.suffix for item in tmp_path.iterdir()} == {".wav", ".png", ".json"}
    wave, rate = sf.read(path, dtype="float32")
    assert (rate, len(wave), sf.info(path).subtype) == (22_050, 11_025, "PCM_16")
    np.testing.assert_allclose(wave, clip.wave_T, atol=1 / 32_000)
    assert path.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    known = json.loads(path.with_suffix(".json").read_text())
    assert known["model"]["digest"] == pipeline.info.digest
    assert known["score"] == max(known["candidate_scores"])
    # the JSON alone is enough to make the clip again
    again = next(pipeline.generate([ClipRequest(known["prompt"], known["seed"], ClipSettings(**known["settings"]))]))
    np.testing.assert_allclose(again.wave_T, clip.wave_T, atol=1e-5)


def test_what_was_made_of_the_same_is_not_missing(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_model)
    requests = [ClipRequest("rain", 7, FAST), ClipRequest("rain", 8, FAST)]
    assert missing(tmp_path, requests, pipeline.info) == list(enumerate(requests))
    path = write_clip(tmp_path, 0, next(pipeline.generate(requests[:1])), pipeline.info)
    assert missing(tmp_path, requests, pipeline.info) == [(1, requests[1])]
    for other in (
        ClipRequest("Rain!", 7, FAST),  # the same name of files
        ClipRequest("rain", 7, FAST.model_copy(update={"steps": 3})),
        ClipRequest("rain", 7, FAST, np.ones(2), "x.wav"),
    ):
        assert missing(tmp_path, [other], pipeline.info) == [(0, other)]
    of_another_model = pipeline.info.model_copy(update={"latent_scale": 0.5})
    assert missing(tmp_path, requests, of_another_model) == list(enumerate(requests))
    json_file, text = path.with_suffix(".json"), path.with_suffix(".json").read_text()
    for broken in ("", text[:40], "[]", "{}"):
        json_file.write_text(broken)
        assert missing(tmp_path, requests, pipeline.info) == list(enumerate(requests))
    json_file.write_text(text)
    path.unlink()
    assert missing(tmp_path, requests, pipeline.info) == list(enumerate(requests))


def test_a_prompt_that_the_model_was_never_taught_is_warned_of_in_the_json(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_model)
    clip = next(pipeline.generate([ClipRequest("quantum teleportation", 7, FAST)]))
    known = json.loads(write_clip(tmp_path, 0, clip, pipeline.info).with_suffix(".json").read_text())
    assert known["warnings"] == [clip.doubt]
    assert "never taught: quantum, teleportation" in clip.doubt


def test_each_clip_of_a_prompt_gets_its_own_seed_and_target() -> None:
    paths, embeddings = [Path("x.wav"), Path("y.wav")], np.eye(2)
    requests = requests_for(["rain", "dog"], 3, 10, FAST, (paths, embeddings))
    assert [request.seed for request in requests] == [10, 11, 12, 10, 11, 12]
    assert [request.target_name for request in requests] == ["x.wav", "y.wav", "x.wav"] * 2
    assert requests[1].target_D is not None
    assert requests[1].target_D[1] == 1


def test_prompts_come_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# sounds for scene 4\na dog bark\n\n  rain on a roof \n")
    assert read_prompts(file) == ["a dog bark", "rain on a roof"]
    file.write_text("# nothing\n")
    with pytest.raises(PromptError, match="no prompts in"):
        read_prompts(file)
    with pytest.raises(PromptError, match="cannot read prompts"):
        read_prompts(tmp_path / "absent.txt")


def test_an_unwritable_place_is_found_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*file"):
        check_writable(file / "below")
    assert stat.S_ISREG(file.stat().st_mode)
    check_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
