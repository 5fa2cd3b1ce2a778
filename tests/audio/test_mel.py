import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.audio.mel import LOG_MEL_MAX, LOG_MEL_MIN, LogMel, griffin_lim, resolutions
from foley_ray.presets import large, small
from foley_ray.spec import AudioSpec


def noise(samples, rows=1, seed=0):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def hifigan_mel(wave_BT, audio):
    """mel_spectrogram of jik876/hifi-gan (meldataset.py), written with today's calls."""
    filters = librosa.filters.mel(
        sr=audio.sample_rate_hz, n_fft=audio.n_fft, n_mels=audio.mel_bands, fmin=audio.fmin_hz, fmax=audio.fmax_hz
    )
    pad = (audio.n_fft - audio.hop_samples) // 2
    wave_BT = torch.nn.functional.pad(wave_BT[:, None], (pad, pad), mode="reflect")[:, 0]
    spectrum = torch.stft(
        wave_BT, audio.n_fft, audio.hop_samples, audio.win_samples, torch.hann_window(audio.win_samples), center=False,
        normalized=False, onesided=True, return_complex=True,
    )  # fmt: skip
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    return torch.log(torch.clamp(torch.from_numpy(filters) @ magnitude, min=1e-5)).transpose(1, 2)


@pytest.mark.parametrize("audio", [small().model.audio, large().model.audio])
def test_is_the_hifigan_recipe(audio):
    wave_BT = noise(audio.clip_samples, rows=2)
    log_mel_BFM = LogMel(audio)(wave_BT)
    assert log_mel_BFM.shape == (2, audio.mel_frames(audio.clip_samples), audio.mel_bands)
    torch.testing.assert_close(log_mel_BFM, hifigan_mel(wave_BT, audio), atol=2e-4, rtol=0)


@pytest.mark.parametrize("audio", [small().model.audio, large().model.audio])
def test_filters_are_librosas(audio):
    ours = LogMel(audio).mel.mel_scale.fb.T.numpy()
    theirs = librosa.filters.mel(
        sr=audio.sample_rate_hz, n_fft=audio.n_fft, n_mels=audio.mel_bands, fmin=audio.fmin_hz, fmax=audio.fmax_hz
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(0, 5000), hop=st.sampled_from([160, 161, 255, 256, 300]))
def test_one_frame_for_each_whole_hop(samples, hop):
    audio = AudioSpec(hop_samples=hop)
    log_mel_BFM = LogMel(audio)(noise(samples, rows=2))
    assert log_mel_BFM.shape == (2, samples // hop, 80)
    assert log_mel_BFM.isfinite().all()


def test_range():
    mel = LogMel(AudioSpec())
    torch.testing.assert_close(mel(torch.zeros(1, 1024)), torch.full((1, 4, 80), LOG_MEL_MIN))
    sine = torch.sin(torch.arange(22050) * (2 * torch.pi * 440 / 22050))[None]
    uniform = 2 * torch.rand(1, 22050, generator=torch.Generator().manual_seed(0)) - 1
    assert max(mel(sine).max(), mel(uniform).max()) < LOG_MEL_MAX


def test_rows_do_not_mix_and_gradients_are_finite_at_silence():
    mel = LogMel(AudioSpec())
    wave_BT = torch.cat([noise(4096), torch.zeros(1, 4096)]).requires_grad_()
    log_mel_BFM = mel(wave_BT)
    torch.testing.assert_close(log_mel_BFM[:1], mel(wave_BT[:1]))
    log_mel_BFM.sum().backward()
    assert wave_BT.grad.isfinite().all()


def test_autocast_leaves_it_exact():
    mel = LogMel(AudioSpec())
    with torch.autocast("cpu", torch.bfloat16):
        log_mel_BFM = mel(noise(4096))
    torch.testing.assert_close(log_mel_BFM, mel(noise(4096)), atol=0, rtol=0)


def test_resolutions_cover_the_whole_band():
    wave_BT = noise(8192)
    audio = AudioSpec()
    pictures = [mel(wave_BT) for mel in resolutions(audio)]
    assert [p.shape[1:] for p in pictures] == [(64, 40), (32, 80), (16, 160)]
    assert all((mel.mel.mel_scale.fb.sum(0) > 0).all() for mel in resolutions(audio))  # no band without a bin


def test_griffin_lim_gives_the_mel_back_in_place():
    audio = AudioSpec()
    time_T = torch.arange(86 * 256) / 22050
    click = torch.zeros(86 * 256)
    click[43 * 256] = 0.9
    wave_BT = torch.stack([0.3 * torch.sin(2 * torch.pi * 500 * time_T), click])
    mel = LogMel(audio)
    state = torch.get_rng_state()
    rebuilt_BT = griffin_lim(mel(wave_BT), audio)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(rebuilt_BT, griffin_lim(mel(wave_BT), audio))
    assert rebuilt_BT.shape == wave_BT.shape
    assert (mel(rebuilt_BT) - mel(wave_BT))[0, 4:-4, :40].abs().mean() < 1.0
    assert abs(rebuilt_BT[1].abs().argmax() - 43 * 256) <= 256  # the click stays where it was
