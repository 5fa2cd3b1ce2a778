import json
import math

import pytest
import torch
from transformers import SpeechT5HifiGan

from foley_ray.audio.mel import LogMel
from foley_ray.config import ModelConfig, VocoderConfig
from foley_ray.errors import ModelError
from foley_ray.models.vocoder import HifiGan, IstftVocoder, build_vocoder, load_vocoder
from foley_ray.presets import default, large, small, tiny
from foley_ray.spec import AudioSpec

ISTFT = tiny().model
HIFIGAN = ModelConfig(vocoder=VocoderConfig(kind="hifigan", channels=32))
# the 16 kHz upsampling, whose first kernel and rate differ by an odd number
HIFIGAN_16K = large().model.model_copy(update={"vocoder": large().model.vocoder.model_copy(update={"channels": 32})})
# a window shorter than the transform, and a hop that divides neither
ISTFT_ODD = ModelConfig(
    audio=AudioSpec(n_fft=600, win_samples=501, hop_samples=161),
    vocoder=VocoderConfig(kind="istft", channels=16, layers=1),
)
ALL = pytest.mark.parametrize("config", [ISTFT, ISTFT_ODD, HIFIGAN, HIFIGAN_16K], ids=["istft", "odd", "hifigan", "16k"])
BOTH = pytest.mark.parametrize("config", [ISTFT, HIFIGAN], ids=["istft", "hifigan"])


@pytest.fixture
def one_thread():
    """Many tiny steps: on a busy machine, threads that wait for each other would make them a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fresh(config):
    torch.manual_seed(0)
    return build_vocoder(config).eval()


def picture(config, frames, rows=1):
    return torch.randn(rows, frames, config.audio.mel_bands, generator=torch.Generator().manual_seed(frames)) - 5


@ALL
@pytest.mark.parametrize("frames", [1, 2, 7, 86])
def test_wave_has_a_hop_for_each_frame(config, frames):
    with torch.no_grad():
        wave_BT = fresh(config)(picture(config, frames, rows=2))
    assert wave_BT.shape == (2, frames * config.audio.hop_samples)
    assert wave_BT.isfinite().all()


@BOTH
def test_rows_do_not_mix(config):
    vocoder = fresh(config)
    log_mel_BFM = picture(config, 9, rows=3)
    with torch.no_grad():
        torch.testing.assert_close(vocoder(log_mel_BFM)[1:2], vocoder(log_mel_BFM[1:2]), atol=1e-6, rtol=1e-4)


@BOTH
def test_gradients_reach_every_parameter(config):
    vocoder = fresh(config)
    vocoder.apply_weight_norm()
    vocoder(picture(config, 12)).square().mean().backward()
    silent = [name for name, p in vocoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_published_sizes():
    count = {name: sum(p.numel() for p in build_vocoder(preset().model).parameters())
             for name, preset in (("small", small), ("large", large), ("default", default))}  # fmt: skip
    assert count == {"small": 13_926_017, "large": 55_264_897, "default": 3_716_611}


def test_what_the_network_misses_of_the_mel_is_made_good() -> None:
    """Random weights, real structure (a decaying noise burst): in eval mode the wave's mel is several times nearer."""
    log_mel = LogMel(ISTFT.audio)
    noise_1T = torch.randn(1, 22_016, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, -3, 22_016)
    asked_BFM = log_mel(noise_1T)
    vocoder = fresh(ISTFT)
    with torch.no_grad():
        matched = (log_mel(vocoder(asked_BFM)) - asked_BFM).abs().mean()
        plain = (log_mel(vocoder.train()(asked_BFM)) - asked_BFM).abs().mean()
    assert matched < 0.5 * plain, f"{plain:.3f} -> {matched:.3f}"


def test_fresh_hifigan_is_above_the_mel_floor():
    # with transformers' own initialisation the wave is around 1e-6, where the mel loss has no gradient
    log_mel_BFM = picture(HIFIGAN, 40)
    wave_BT = fresh(HIFIGAN)(log_mel_BFM)
    assert wave_BT.std() > 1e-3
    loss = (LogMel(HIFIGAN.audio)(wave_BT) - log_mel_BFM).abs().mean()
    (gradient,) = torch.autograd.grad(loss, wave_BT)
    assert gradient.abs().sum() > 0


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_saved_and_loaded_is_the_same(config, training, tmp_path):
    vocoder = fresh(config)
    if training:
        vocoder.apply_weight_norm()
        with torch.no_grad():
            for parameter in vocoder.parameters():
                parameter.mul_(1.01)
    log_mel_BFM = picture(config, 10)
    with torch.no_grad():
        before = vocoder(log_mel_BFM)
        vocoder.save_pretrained(tmp_path)
        torch.testing.assert_close(vocoder(log_mel_BFM), before, atol=0, rtol=0)  # saving changes nothing
        loaded = load_vocoder(tmp_path, config.audio)
        torch.testing.assert_close(loaded(log_mel_BFM), before, atol=1e-6, rtol=1e-5)
        vocoder.remove_weight_norm()
        torch.testing.assert_close(vocoder(log_mel_BFM), before, atol=1e-6, rtol=1e-5)
    assert type(loaded) is type(vocoder)
    assert not loaded.training
    assert sorted(loaded.state_dict()) == sorted(vocoder.state_dict())


def test_folders_are_transformers_folders_both_ways(tmp_path):
    ours = fresh(HIFIGAN)
    ours.apply_weight_norm()
    ours.save_pretrained(tmp_path / "ours")
    theirs = SpeechT5HifiGan.from_pretrained(tmp_path / "ours", local_files_only=True)
    log_mel_BFM = picture(HIFIGAN, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs(log_mel_BFM), ours(log_mel_BFM), atol=1e-6, rtol=1e-5)
        theirs.save_pretrained(tmp_path / "theirs")
        again = load_vocoder(tmp_path / "theirs", HIFIGAN.audio)
        torch.testing.assert_close(again(log_mel_BFM), theirs(log_mel_BFM))
    assert isinstance(again, HifiGan)


def test_istft_is_the_inverse_of_the_analysis():
    """Frames cut as LogMel cuts them and windowed twice add up to the wave again, edges included."""
    for config in (ISTFT, ISTFT_ODD):
        audio = config.audio
        wave_T = torch.randn(20 * audio.hop_samples, generator=torch.Generator().manual_seed(0))
        left = (audio.n_fft - audio.hop_samples) // 2
        padded_T = torch.nn.functional.pad(wave_T, (left, audio.n_fft - audio.hop_samples - left))
        vocoder = fresh(config)
        frames_BFN = padded_T.unfold(0, audio.n_fft, audio.hop_samples)[None] * vocoder.window
        torch.testing.assert_close(vocoder._overlap_add(frames_BFN)[0], wave_T, atol=1e-5, rtol=1e-5)


def test_istft_learns_a_short_sound(one_thread):
    audio = ISTFT.audio
    mel = LogMel(audio)
    time_T = torch.arange(16 * audio.hop_samples) / audio.sample_rate_hz
    wave_BT = (0.5 * torch.sin(2 * math.pi * 440 * time_T) * torch.exp(-4 * time_T))[None]
    log_mel_BFM = mel(wave_BT)
    vocoder = fresh(ISTFT)
    optimiser = torch.optim.AdamW(vocoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(250):
        made_BT = vocoder(log_mel_BFM)
        loss = (mel(made_BT) - log_mel_BFM).abs().mean() + 10 * (made_BT - wave_BT).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    correlation = torch.nn.functional.cosine_similarity(vocoder(log_mel_BFM), wave_BT)
    assert correlation > 0.95  # phase and all


def test_istft_begins_as_noise_that_is_as_loud_as_the_mel_says():
    audio = default().model.audio
    wave_BT = torch.randn(1, 86 * audio.hop_samples, generator=torch.Generator().manual_seed(1)) * torch.linspace(
        0.3, 0.001, 86 * 256
    )
    log_mel_BFM = LogMel(audio)(wave_BT)
    with torch.no_grad():
        again_BFM = LogMel(audio)(fresh(default().model)(log_mel_BFM))
    assert (again_BFM - log_mel_BFM).mean().abs() < 0.15, "its level is off"
    assert (again_BFM - log_mel_BFM).abs().mean() < 0.35


def test_istft_draws_its_noise_anew_in_training_alone():
    vocoder, log_mel_BFM = fresh(ISTFT), picture(ISTFT, 9)
    with torch.no_grad():
        assert torch.equal(vocoder(log_mel_BFM), vocoder(log_mel_BFM))
        vocoder.train()
        assert not torch.equal(vocoder(log_mel_BFM), vocoder(log_mel_BFM))


def test_istft_needs_overlap():
    config = ModelConfig(audio=AudioSpec(win_samples=512, hop_samples=512), vocoder=ISTFT.vocoder)
    with pytest.raises(ModelError, match="hop_samples <= win_samples / 2, not 512 with 512"):
        build_vocoder(config)


@pytest.fixture(params=[ISTFT, HIFIGAN], ids=["istft", "hifigan"])
def folder(request, tmp_path):
    fresh(request.param).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_wrong_audio_is_named(folder):
    with pytest.raises(ModelError, match="mel_bands is 80, not 64"):
        load_vocoder(folder, large().model.audio)


def test_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no vocoder folder: config\.json"):
        load_vocoder(folder)


def test_unknown_kind_is_named(folder):
    edit(folder, model_type="bert", _class_name="BigVGAN")
    with pytest.raises(ModelError, match="'bert', _class_name 'BigVGAN'"):
        load_vocoder(folder)


def test_missing_weights_are_named(folder):
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vocoder(folder)


def test_cut_off_weights_are_named(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vocoder(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3, "upsample_rates": [8, 8, 2, 2, 1], "upsample_kernel_sizes": [16, 16, 4, 4, 1]},
        {"layers": 1, "upsample_rates": [8, 8, 2], "upsample_kernel_sizes": [16, 16, 4]},
        {"channels": 32, "upsample_initial_channel": 64},
    ],
    ids=["more", "fewer", "wider"],
)
def test_weights_of_another_size_are_named(folder, change):
    edit(folder, **change)
    with pytest.raises(ModelError, match=r"do not fit|cannot be loaded"):
        load_vocoder(folder)


def test_kinds():
    assert isinstance(build_vocoder(ISTFT), IstftVocoder)
    assert isinstance(build_vocoder(HIFIGAN), HifiGan)
