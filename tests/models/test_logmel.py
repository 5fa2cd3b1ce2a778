"""laion-clap's front-end without librosa gives what torchlibrosa's gives."""

import subprocess
import sys

import pytest
import torch

from foley_ray.models import logmel


@pytest.mark.parametrize(
    ("rate_hz", "n_fft", "hop", "bands", "low_hz", "high_hz"),
    [(22050, 1024, 256, 64, 50, 11025), (48000, 1024, 480, 64, 50, 14000), (16000, 512, 160, 64, 0, 8000)],
)
def test_front_end_equals_torchlibrosas(rate_hz: int, n_fft: int, hop: int, bands: int, low_hz: int, high_hz: int) -> None:
    from torchlibrosa import stft

    wave_BT = torch.randn(2, rate_hz // 2, generator=torch.Generator().manual_seed(0)) * torch.linspace(1e-4, 1, rate_hz // 2)
    heard = []
    for kind in (stft, logmel):
        spectrum = kind.Spectrogram(
            n_fft=n_fft,
            hop_length=hop,
            win_length=n_fft,
            window="hann",
            center=True,
            pad_mode="reflect",
            freeze_parameters=True,
        )
        bank = kind.LogmelFilterBank(
            sr=rate_hz,
            n_fft=n_fft,
            n_mels=bands,
            fmin=low_hz,
            fmax=high_hz,
            ref=1.0,
            amin=1e-10,
            top_db=None,
            freeze_parameters=True,
        )
        heard.append(bank(spectrum(wave_BT)))
    assert heard[0].shape == heard[1].shape
    assert (heard[0] - heard[1]).abs().max() < 2e-3  # dB


def test_nothing_of_the_front_end_is_stored() -> None:
    layers = logmel.Spectrogram(64, 16, 64, "reflect"), logmel.LogmelFilterBank(8000, 64, 8, 0.0, 4000.0, 1e-10)
    assert [dict(layer.state_dict()) for layer in layers] == [{}, {}]


def test_silence_is_the_floor_and_no_nan() -> None:
    bank = logmel.LogmelFilterBank(8000, 64, 8, 0.0, 4000.0, 1e-10)
    assert torch.equal(bank(torch.zeros(1, 3, 33)), torch.full((1, 3, 8), -100.0))


def test_a_clap_is_built_without_librosa_and_scikit_learn() -> None:
    """They took two of ten seconds of `foley generate`; and whoever imports laion_clap's towers gets the real ones after us."""
    program = """
import sys
from foley_ray.models.clap import build_clap
from foley_ray.presets import preset
build_clap(preset("tiny").model.clap)
assert not {"librosa", "numba", "sklearn"} & set(sys.modules), sorted({"librosa", "numba", "sklearn"} & set(sys.modules))
assert not {"laion_clap", "laion_clap.clap_module", "torchlibrosa", "torchlibrosa.stft"} & set(sys.modules)
from torchlibrosa.stft import STFT
assert "librosa" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
