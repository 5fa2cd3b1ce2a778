"""Every task on its real tiny classes: gradients where they belong, and a loss that falls on one repeated batch."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from foley_ray.checkpoint import load_part
from foley_ray.config import TASKS, ModelConfig, TrainConfig, TuningConfig
from foley_ray.errors import ConfigError
from foley_ray.models.clap import load_clap
from foley_ray.presets import tiny
from foley_ray.training.loop import Trainer
from foley_ray.training.tasks import TASK_CLASSES
from foley_ray.training.tasks.base import TrainingTask
from foley_ray.training.tasks.segments import loud_segment, segment_length


def batch(model: ModelConfig) -> dict:
    generator = torch.Generator().manual_seed(0)
    samples = model.audio.clip_samples
    time_s = torch.arange(samples) / model.audio.sample_rate_hz
    tones = torch.stack([torch.sin(2 * torch.pi * f * time_s) for f in (200, 800, 2000)])
    noise = torch.randn(1, samples, generator=generator)
    return {
        "wave": 0.4 * torch.cat([tones, noise / noise.abs().max()]),
        "caption": ["low", "middle", "high", "noise"],
        "class_id": torch.tensor([0, 1, 2, 3]),
        "sha256": ["a", "b", "c", "d"],
    }


def build(name, folder: Path, model: ModelConfig | None = None, **changes) -> TrainingTask:
    kind = TASK_CLASSES[name]
    train = tiny().training[name].model_copy(update={"batch_size": 4, "adversarial_from": 0, "warmup_steps": 0, **changes})
    return kind(model or tiny().model, train, {part: load_part(folder, part) for part in kind.needs})


@pytest.mark.parametrize("name", TASKS)
def test_each_phase_moves_its_own_weights_and_no_others(name, tiny_model: Path) -> None:
    torch.manual_seed(0)
    task = build(name, tiny_model)
    task.calibrate(batch(task.config))
    carry: dict = {}
    for phase_name, phase in task.phases.items():
        for other in task.phases.values():
            other.zero_grad()
        losses = phase(batch(task.config), 1, carry)
        losses["total"].backward()
        assert all(value.isfinite() for value in losses.values()), losses
        without = [key for key, weight in phase.named_parameters() if weight.requires_grad and weight.grad is None]
        assert without == [], f"{name}/{phase_name}: DDP would hang on weights without gradient"
        for other_name, other in task.phases.items():
            touched = [key for key, weight in other.named_parameters() if weight.grad is not None]
            assert other_name == phase_name or touched == []
    for part, module in task.frozen.items():
        assert not any(weight.requires_grad for weight in module.parameters()), part
        assert not module.training


@pytest.mark.parametrize(
    ("name", "key", "steps"),
    [("clap", "total", 25), ("vae", "l1", 25), ("vocoder", "mel_l1", 60), ("diffusion", "mse", 60), ("finetune", "mse", 60)],
)
def test_the_loss_falls_on_one_batch(name, key: str, steps: int, tiny_model: Path) -> None:
    torch.manual_seed(0)
    task = build(name, tiny_model, steps=steps)
    task.calibrate(batch(task.config))
    trainer = Trainer(task.phases, torch.nn.ModuleDict(task.parts()), task.train, Accelerator(cpu=True))
    seen: list[float] = []

    def watch(module, inputs, output) -> None:
        seen.append(float(output[key].detach()))

    next(iter(task.phases.values())).register_forward_hook(watch)
    trainer.train(batch(task.config) for _ in range(steps))
    first, last = sum(seen[:5]) / 5, sum(seen[-5:]) / 5
    assert last < 0.9 * first, f"{first:.3f} -> {last:.3f}"


def test_latents_are_scaled_to_unit_spread(tiny_model: Path) -> None:
    task = build("diffusion", tiny_model)
    task.calibrate(batch(task.config))
    with torch.no_grad():
        latent = task.latent(batch(task.config))
    assert float(latent.std()) == pytest.approx(1.0, abs=0.1)


def test_pretraining_hears_and_finetuning_reads(tiny_model: Path) -> None:
    given = batch(tiny().model)
    heard, read = (build(name, tiny_model).embed(given) for name in ("diffusion", "finetune"))
    clap = load_part(tiny_model, "clap")
    with torch.no_grad():
        torch.testing.assert_close(heard, clap.audio_embed(given["wave"], 22_050))
        torch.testing.assert_close(read, clap.text_embed(given["caption"]))


@pytest.mark.parametrize("kind", ["linear", "per_class", "none"])
def test_finetuning_makes_the_tuning_layer_it_was_asked_for(kind, tiny_model: Path) -> None:
    tuning = TuningConfig(kind=kind, classes=("dog_bark", "rain") if kind == "per_class" else ())
    task = build("finetune", tiny_model, tiny().model.model_copy(update={"tuning": tuning}))
    assert ("tuning" in task.parts()) == (kind != "none")
    if kind == "per_class":
        assert float(task.parts()["tuning"].anchor_KD.norm(dim=1).min()) == pytest.approx(1.0, abs=1e-5)


def test_the_decoder_alone_learns_and_the_latents_stay(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder of a VAE that is there: give it with --init"):
        build("vae", tiny_model, decoder_only=True)
    train = tiny().training["vae"].model_copy(update={"adversarial_from": 0, "decoder_only": True})
    task = TASK_CLASSES["vae"](tiny().model, train, {"vae": load_part(tiny_model, "vae")})
    losses = task.phases["generator"](batch(task.config), 1, {})
    losses["total"].backward()
    vae = task.parts()["vae"]
    learning = {name.partition(".")[0] for name, weight in vae.named_parameters() if weight.grad is not None}
    assert learning == {"decoder", "post_quant_conv"}


def test_the_audio_tower_alone_learns_and_texts_stay(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audio tower of a CLAP that is there: give it with --init"):
        build("clap", tiny_model, audio_only=True)
    train = tiny().training["clap"].model_copy(update={"steps": 3, "batch_size": 4, "warmup_steps": 0, "audio_only": True})
    task = TASK_CLASSES["clap"](tiny().model, train, {"clap": load_part(tiny_model, "clap")})
    trainer = Trainer(task.phases, torch.nn.ModuleDict(task.parts()), train, Accelerator(cpu=True))
    trainer.train(batch(task.config) for _ in range(3))
    before, after = load_part(tiny_model, "clap").eval(), task.parts()["clap"].eval()
    assert torch.equal(*(clap.text_embed(["rain", "a dog", ""]) for clap in (before, after)))
    wave_BT = batch(task.config)["wave"]
    learned = after.audio_embed(wave_BT, 22_050)
    assert not torch.allclose(learned, before.audio_embed(wave_BT, 22_050), atol=1e-3)
    after.save_pretrained(tmp_path)
    torch.testing.assert_close(load_clap(tmp_path).eval().audio_embed(wave_BT, 22_050), learned)  # its front end did not learn


def test_all_rows_dropped_means_the_condition_has_no_effect(tiny_model: Path) -> None:
    """Dropout replaces the condition by the empty text's embedding, exactly."""
    task = build("diffusion", tiny_model, condition_dropout=1.0)
    totals = []
    for caption in ("rain", "thunder"):
        torch.manual_seed(0)
        given = {**batch(task.config), "caption": [caption] * 4}
        given["wave"] = given["wave"] if caption == "rain" else given["wave"].clone()
        seen: list = []
        hook = task.denoiser.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[2]))
        totals.append(task.phases["model"](given, 0, {})["total"].detach())
        hook.remove()
        with torch.no_grad():
            torch.testing.assert_close(seen[0], load_part(tiny_model, "clap").text_embed([""]).expand(4, -1))
    torch.testing.assert_close(*totals)


def test_segments_are_whole_latent_frames_and_loud() -> None:
    model = tiny().model
    assert segment_length(model, TrainConfig(segment_samples=9000)) == 8 * 1024
    with pytest.raises(ConfigError, match="exceeds the training crop"):
        segment_length(model, TrainConfig(segment_samples=10**6))
    wave = torch.zeros(64, 22_528)
    wave[:, :8192] = 0.5
    torch.manual_seed(0)
    loud = loud_segment(wave, 4096).abs().mean(dim=1)
    assert float((loud > 0).float().mean()) > 0.75


@pytest.mark.parametrize("name", ["vae", "diffusion", "finetune"])
def test_gradient_checkpointing_changes_memory_and_no_gradient(name, tiny_model: Path) -> None:
    found = []
    for wanted in (False, True):
        torch.manual_seed(0)
        task = build(name, tiny_model, gradient_checkpointing=wanted)
        phase = next(iter(task.phases.values()))
        assert any(getattr(module, "gradient_checkpointing", False) for module in phase.modules()) == wanted
        torch.manual_seed(1)
        phase(batch(task.config), 0, {})["total"].backward()
        found.append([weight.grad for part in task.parts().values() for weight in part.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


def test_what_a_task_does_not_have_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="task vocoder has no gradient_checkpointing"):
        build("vocoder", tiny_model, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="task clap has no lora_rank"):
        build("clap", tiny_model, lora_rank=4)
    with pytest.raises(ConfigError, match="task diffusion has no decoder_only; vae has"):
        build("diffusion", tiny_model, decoder_only=True)
    with pytest.raises(ConfigError, match="task vae has no audio_only; clap has"):
        build("vae", tiny_model, audio_only=True)
    with pytest.raises(ConfigError, match="lora_rank adapts a trained unet, and none is given"):
        build("finetune", tiny_model, lora_rank=4)


def test_lora_trains_its_adapters_alone_and_is_merged_when_saved(tiny_model: Path) -> None:
    torch.manual_seed(0)
    given = {part: load_part(tiny_model, part) for part in ("clap", "vae", "unet", "tuning")}
    train = tiny().training["finetune"].model_copy(update={"steps": 3, "batch_size": 4, "warmup_steps": 0, "lora_rank": 2})
    task = TASK_CLASSES["finetune"](tiny().model, train, given)
    before = {name: weight.clone() for name, weight in task.denoiser.unet.state_dict().items()}
    trainer = Trainer(task.phases, torch.nn.ModuleDict(task.parts()), train, Accelerator(cpu=True))
    trainer.train(batch(task.config) for _ in range(3))
    changed = {name for name, weight in task.denoiser.unet.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    merged = task.finished()["unet"].eval()
    assert not any("lora" in name for name in merged.state_dict())
    assert merged.state_dict().keys() == load_part(tiny_model, "unet").state_dict().keys()
    x, when, condition = torch.randn(2, 8, 24, 24), torch.tensor([3, 700]), torch.randn(2, 32)
    with torch.no_grad():
        live, alone, original = (
            unet.eval()(x, when, encoder_hidden_states=None, class_labels=condition).sample
            for unet in (task.denoiser.unet, merged, load_part(tiny_model, "unet"))
        )
    torch.testing.assert_close(alone, live, rtol=1e-4, atol=1e-5)
    assert float((alone - original).abs().max()) > 1e-5
    assert "lora" in " ".join(task.denoiser.unet.state_dict()), "saving must not take the adapters away from the run"


def test_cached_rows_train_like_decoded_ones(tiny_model: Path) -> None:
    """Latent and embedding from the batch give the very loss that computing them gives."""
    task = build("diffusion", tiny_model)
    whole = batch(task.config)
    torch.manual_seed(0)
    with torch.no_grad():
        cached = {"latent": task.latent(whole), "audio_embedding": task.embed(whole), "caption": whole["caption"]}
        torch.manual_seed(1)
        plain = task.phases["model"]({**whole, "latent": cached["latent"]}, 0, {})["total"]
        torch.manual_seed(1)
        assert torch.equal(task.phases["model"](cached, 0, {})["total"], plain)


def test_a_vocoder_that_is_given_the_vae_learns_from_its_mels(tiny_model: Path) -> None:
    vae = load_part(tiny_model, "vae")
    train = tiny().training["vocoder"]
    phase = TASK_CLASSES["vocoder"](tiny().model, train, {"vae": vae}).phases["generator"]
    mel = torch.randn(64, 8, tiny().model.audio.mel_bands, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        heard = phase._heard(mel)
    untouched = torch.tensor([torch.equal(a, b) for a, b in zip(heard, mel, strict=True)]).float().mean()
    assert 0.1 < float(untouched) < 0.4
    assert not any(parameter is other for parameter in phase.parameters() for other in vae.parameters())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
