from pathlib import Path

import numpy as np
import pytest
import torch

from foley_ray.audio.files import write_wav
from foley_ray.checkpoint import load_part, read_info
from foley_ray.columns import ragged
from foley_ray.errors import ModelError, PromptError, SourceError
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.rank import RankStage
from foley_ray.stages.sample import SampleStage
from foley_ray.stages.vocode import VocodeStage


def rows(count: int, **changes) -> dict:
    base = {
        "clip_id": list(range(count)),
        "candidate": list(range(count)),
        "prompt": ["a dog bark"] * count,
        "seed": [7] * count,
        "steps": [2] * count,
        "guidance": [2.0] * count,
        "guided_above": [0.3] * count,
        "guided_below": [5.0] * count,
        "sampler": ["dpmpp-2m"] * count,
        "eta": [0.0] * count,
        "duration_s": [1.0] * count,
    }
    return {**base, **changes}


def test_condition_is_the_text_embedding_tuned_and_the_target_is_not(tiny_model: Path) -> None:
    stage = ConditionStage(tiny_model)
    with torch.no_grad():
        stage.tuning.linear.bias.fill_(0.3)
    batch = stage(rows(3, prompt=["rain", "a dog bark", "rain"], extra=[1, 2, 3]))
    assert batch["extra"] == [1, 2, 3]
    clap = load_part(tiny_model, "clap")
    with torch.no_grad():
        np.testing.assert_allclose(batch["target"][1], clap.text_embed(["a dog bark"])[0].numpy(), atol=1e-6)
    np.testing.assert_array_equal(batch["condition"][0], batch["condition"][2])
    assert np.abs(batch["condition"] - batch["target"]).max() > 0.05
    np.testing.assert_allclose(np.linalg.norm(batch["condition"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "a prompt is empty"), ("  ", "a prompt is empty"), ("x " * 90, "more than 75")]
)
def test_prompts_that_cannot_be_read_are_refused(tiny_model: Path, prompt: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        ConditionStage(tiny_model)(rows(2, prompt=["rain", prompt]))


@pytest.mark.parametrize("duration_s", [0.5, 0.77, 1.0, 3.3])
def test_a_clip_is_exactly_as_long_as_asked(tiny_model: Path, duration_s: float) -> None:
    batch = ConditionStage(tiny_model)(rows(2, duration_s=[duration_s, 0.6]))
    batch = VocodeStage(tiny_model)(SampleStage(tiny_model)(batch))
    spec = read_info(tiny_model).model.audio
    assert batch["latent"][0].shape == spec.latent_shape(duration_s)
    assert [len(wave) for wave in batch["wave"]] == [spec.samples(duration_s), spec.samples(0.6)]
    for wave_T in batch["wave"]:
        assert np.abs(wave_T).max() <= 1
        assert abs(wave_T[0]) < 1e-3
        assert abs(wave_T[-1]) < 1e-3


def test_vocoding_does_not_depend_on_batch_mates(tiny_model: Path) -> None:
    stage = VocodeStage(tiny_model, max_rows=2)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(8, width, 20, generator=generator).numpy() for width in (22, 11, 22, 22)]
    durations = [1.0, 0.5, 0.9, 1.0]
    together = stage({"latent": ragged(latents), "duration_s": durations})["wave"]
    for latent, duration_s, wave_T in zip(latents, durations, together, strict=True):
        alone = stage({"latent": ragged([latent]), "duration_s": [duration_s]})["wave"][0]
        np.testing.assert_allclose(alone, wave_T, atol=1e-4)


def test_a_sound_scores_best_against_its_own_embedding(tiny_model: Path) -> None:
    stage = RankStage(tiny_model)
    generator = np.random.default_rng(0)
    waves = [0.3 * generator.standard_normal(length).astype(np.float32) for length in (22_050, 9_000, 30_000)]
    own = stage.embed(waves)
    batch = stage({"wave": ragged(waves), "target": own, "clip_id": [0, 1, 2]})
    np.testing.assert_allclose(batch["score"], 1, atol=1e-5)
    np.testing.assert_allclose(stage.embed(waves[:1]), own[:1], atol=1e-5)


def test_target_folders(tiny_model: Path, tmp_path: Path) -> None:
    stage = RankStage(tiny_model)
    with pytest.raises(SourceError, match="no folder of target sounds"):
        stage.embed_folder(tmp_path / "nothing")
    with pytest.raises(SourceError, match="no sound files"):
        stage.embed_folder(tmp_path)
    for name in ("b.wav", "a.WAV"):
        write_wav(tmp_path / name, np.random.default_rng(len(name)).standard_normal(5000).astype(np.float32), 44_100)
    paths, embedding_ND = stage.embed_folder(tmp_path)
    assert [path.name for path in paths] == ["a.WAV", "b.wav"]
    assert embedding_ND.shape == (2, 32)


def test_a_missing_part_is_an_error_not_a_silent_skip(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import shutil

    without = tmp_path / "m"
    shutil.copytree(tiny_model, without)
    content = json.loads((without / "foley.json").read_text())
    del content["parts"]["clap"]
    (without / "foley.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="lacks clap"):
        RankStage(without)
