"""LAION-CLAP checkpoints against laion-clap's own class, and ClapModel folders against transformers' own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import restless, text_config

from foley_ray.checkpoint import ModelInfo, assemble, find_parts, load_part, read_info, save_model
from foley_ray.errors import ModelError, PromptError
from foley_ray.interchange.foreign import write_model
from foley_ray.interchange.recognise import Reading, read_foreign
from foley_ray.models.laion import laion
from foley_ray.presets import preset
from foley_ray.stages.rank import RankStage
from foley_ray.training.tasks.clap import ClapTask

WORDS = ["a dog bark", "heavy rain on a roof"]


def laion_clap(monkeypatch: pytest.MonkeyPatch, fusion: bool = False) -> Any:
    """laion-clap's class with both towers narrow; its RoBERTa would come from the hub, its HTSAT have 28 M weights."""
    from transformers import RobertaConfig, RobertaModel

    model = laion().model
    config = RobertaConfig(**{key: value for key, value in text_config().items() if key != "projection_dim"}, type_vocab_size=1)
    monkeypatch.setattr(model.RobertaModel, "from_pretrained", lambda name: RobertaModel(config))
    tower = sys.modules["laion_clap.clap_module.htsat"].HTSAT_Swin_Transformer

    def narrow(audio: Any, enable_fusion: bool, fusion_type: str) -> Any:
        sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 4}
        return tower(config=audio, enable_fusion=enable_fusion, fusion_type=fusion_type, **sizes)

    monkeypatch.setattr(model, "create_htsat_model", narrow)
    audio = {
        "model_type": "HTSAT", "model_name": "tiny", "sample_rate": 48000, "window_size": 1024, "hop_size": 480,
        "fmin": 50, "fmax": 14000, "class_num": 4, "mel_bins": 64, "clip_samples": 480000,
    }  # fmt: skip
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "model_type": "roberta"}
    torch.manual_seed(3)
    fusing = {"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {}
    clap = model.CLAP(32, audio, text, joint_embed_shape=32, **fusing)
    linear = torch.nn.Linear(64, 32)  # laion's is as wide as roberta-base
    clap.text_projection[0] = linear
    return restless(clap)


def saved(clap: Any, path: Path) -> Path:
    """As LAION's training program saves: the names of DDP, an epoch, the best score as numpy's number."""
    state = {f"module.{name}": value for name, value in clap.state_dict().items()}
    torch.save({"epoch": 15, "name": "clap", "best": np.float64(0.9), "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture
def clap(monkeypatch: pytest.MonkeyPatch) -> Any:
    return laion_clap(monkeypatch)


def sounds() -> torch.Tensor:
    """Noise that swells, and a tone in pulses."""
    torch.manual_seed(5)
    time_s = torch.arange(480_000) / 48_000
    noise = 0.3 * torch.randn(480_000) * time_s / 10
    return torch.stack([noise, torch.sin(2765 * time_s) * (time_s % 0.5 < 0.1)])


@torch.inference_mode()
def test_a_laion_checkpoint_embeds_as_laions_own_class(clap: Any, tokenizer_folder: Path, tmp_path: Path) -> None:
    foreign = read_foreign(saved(clap, tmp_path / "clap.pt"), Reading(tokenizer=tokenizer_folder))
    write_model(foreign, tmp_path / "model", preset("large").model, "clap.pt", "large")
    assert read_info(tmp_path / "model").model.clap.embed_dim == 32
    ours = load_part(tmp_path / "model", "clap")

    tokens = ours.tokenizer(WORDS, padding="max_length", max_length=32, return_tensors="pt")
    torch.testing.assert_close(ours.text_embed(WORDS), clap.get_text_embedding(dict(tokens)), atol=1e-5, rtol=0)
    wave_BT = sounds()
    theirs_BD = clap.get_audio_embedding([{"waveform": wave_T} for wave_T in wave_BT])
    assert float((theirs_BD[0] * theirs_BD[1]).sum()) < 0.999
    torch.testing.assert_close(ours.audio_embed(wave_BT, 48_000), theirs_BD, atol=1e-4, rtol=0)
    assert float(ours.scale) == pytest.approx(float(clap.logit_scale_a.exp()), rel=1e-5)


@torch.inference_mode()
def test_a_transformers_folder_embeds_as_transformers_own_class(clap_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, ClapModel

    write_model(read_foreign(clap_folder), tmp_path / "model", preset("large").model, "clap", "large")
    ours = load_part(tmp_path / "model", "clap")
    for folder in (clap_folder, tmp_path / "model" / "clap"):  # what we write is read by transformers again
        net, processor = ClapModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
        wave_BT = sounds()
        short_BT = wave_BT[:, :150_000]
        for heard_BT in (wave_BT, short_BT):
            inputs = processor(audio=[row.numpy() for row in heard_BT], sampling_rate=48_000, return_tensors="pt")
            features = net.audio_model(**{"input_features": inputs["input_features"]}).pooler_output
            theirs_BD = torch.nn.functional.normalize(net.audio_projection(features), dim=-1)
            torch.testing.assert_close(ours.audio_embed(heard_BT, 48_000), theirs_BD, atol=1e-4, rtol=0)
        tokens = processor.tokenizer(WORDS, padding=True, return_tensors="pt")
        theirs_BD = net.text_projection(net.text_model(**tokens).pooler_output)
        torch.testing.assert_close(ours.text_embed(WORDS), torch.nn.functional.normalize(theirs_BD, dim=-1), atol=1e-5, rtol=0)


def test_a_published_clap_stands_in_for_a_presets_own(clap_folder: Path, tmp_path: Path) -> None:
    wanted = preset("tiny")
    write_model(read_foreign(clap_folder), tmp_path / "model", wanted.model, "clap", "tiny")
    given = find_parts([tmp_path / "model"], wanted, needed=("clap",))
    assert load_part(given["clap"][0], "clap").config.kind == "roberta"
    wider = wanted.model.clap.model_copy(update={"embed_dim": 64})
    other = wanted.model_copy(update={"model": wanted.model.model_copy(update={"clap": wider})})
    with pytest.raises(ModelError, match="made with other settings"):
        find_parts([tmp_path / "model"], other, needed=("clap",))


def test_one_that_was_trained_on_is_ranked_by_as_it_hears(clap_folder: Path, tmp_path: Path) -> None:
    wanted = preset("tiny")
    write_model(read_foreign(clap_folder), tmp_path / "model", wanted.model, "clap", "tiny")
    train = wanted.training["clap"].model_copy(update={"audio_only": True})
    task = ClapTask(wanted.model, train, {"clap": load_part(tmp_path / "model", "clap")})
    # as a run's checkpoint is written, and a model put together
    save_model(tmp_path / "run", ModelInfo(preset=wanted.name, model=task.config), task.finished())
    assemble([tmp_path / "model", tmp_path / "run"], tmp_path / "whole")
    before, after = RankStage(tmp_path / "model"), RankStage(tmp_path / "whole")
    assert (after.levels, after.window_samples) == (before.levels, before.window_samples) == (False, 220_500)


def test_one_text_at_a_time_or_many(clap_folder: Path) -> None:
    ours: Any = read_foreign(clap_folder).parts["clap"]
    with torch.inference_mode():
        alone = torch.cat([ours.text_embed([word]) for word in ["", *WORDS]])
        torch.testing.assert_close(ours.text_embed(["", *WORDS]), alone, atol=1e-5, rtol=0)
        assert ours.text_embed(["bark " * 80], cut=True).shape == (1, 32)
        with pytest.raises(PromptError, match="more than 30"):
            ours.text_embed(["bark " * 80])


def test_it_learns_with_a_gradient_at_every_weight(clap_folder: Path) -> None:
    ours: Any = read_foreign(clap_folder).parts["clap"].train()
    audio_BD, text_BD, scale = ours(sounds()[:, :48_000], WORDS, 48_000)
    ((audio_BD * text_BD).sum() * scale).backward()
    assert [name for name, weight in ours.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_what_is_no_such_clap_is_refused(
    clap: Any, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path, tmp_path: Path
) -> None:
    reading = Reading(tokenizer=tokenizer_folder)
    path = saved(clap, tmp_path / "clap.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cut off"):
        read_foreign(path, reading)
    state = clap.state_dict()
    torch.save({"state_dict": {k: v for k, v in state.items() if "layer.1.output.dense.bias" not in k}}, path)
    with pytest.raises(ModelError, match=r"missing \['text_model.encoder.layer.1.output.dense.bias'\]"):
        read_foreign(path, reading)
    torch.save({"state_dict": {k: v for k, v in state.items() if not k.startswith("audio_branch")}}, path)
    with pytest.raises(ModelError, match="no HTSAT audio tower"):
        read_foreign(path, reading)
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"roberta-base is not here.*give the folder with --tokenizer"):
        read_foreign(path)
    with pytest.raises(ModelError, match=r"no tokenizer in .*--tokenizer"):
        read_foreign(path, Reading(tokenizer=tmp_path))
    with pytest.raises(ModelError, match="without fusion"):
        read_foreign(saved(laion_clap(monkeypatch, fusion=True), path), reading)
