"""One recording at a time, without Ray."""

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE_HZ, halve, save, tone

from foley_ray.data.decode import SoundRules, load_wave, to_int16
from foley_ray.data.manifest import Reason
from foley_ray.data.storage import Fault, Place, Storage


def load(file, name=None, **rules):
    return load_wave(Storage(file.parent), Place(name or file.name), RATE_HZ, SoundRules(**rules))


def fault_of(file, name=None, **rules):
    with pytest.raises(Fault) as caught:
        load(file, name, **rules)
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels", "options"),
    [
        ("mono.wav", 22050, 1, {"subtype": "PCM_16"}),
        ("studio.wav", 48000, 2, {"subtype": "PCM_24"}),
        ("float.wav", 44100, 1, {"subtype": "FLOAT"}),
        ("phone.wav", 8000, 1, {"subtype": "ULAW"}),
        ("surround.flac", 96000, 6, {"subtype": "PCM_24"}),
        ("mac.aiff", 44100, 2, {"subtype": "PCM_16"}),
        ("web.ogg", 44100, 2, {}),
        ("voice.ogg", 48000, 1, {"subtype": "OPUS"}),
        ("music.mp3", 44100, 2, {}),
        ("mistaken.raw", 44100, 1, {"format": "WAV"}),
    ],
)
def test_formats_rates_and_channels(tmp_path, name, rate_hz, channels, options):
    file = save(tmp_path / name, tone(rate_hz, channels=channels), rate_hz, **options)
    wave = load(file)
    assert wave.dtype == np.int16
    # lossy coders pad: an MP3 frame is 1152 samples, and one may stand at each end
    assert len(wave) == pytest.approx(0.5 * RATE_HZ, abs=2 if name.split(".")[1] not in ("mp3", "ogg") else 1400)
    middle = wave[4000:8096] / 2**15
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(4096)))
    assert np.argmax(spectrum) * RATE_HZ / 4096 == pytest.approx(440, abs=6)  # one bin is 5.4 Hz
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.mp3", "a.au"])
def test_a_file_that_breaks_off_is_corrupt(tmp_path, name):
    assert fault_of(halve(save(tmp_path / name, tone(duration_s=2)))) == Reason.CORRUPT


def test_a_wav_written_to_a_pipe_does_not_break_off(tmp_path):
    file = save(tmp_path / "a.wav")
    content = bytearray(file.read_bytes())
    at = content.find(b"data") + 4
    content[at : at + 4] = content[4:8] = b"\xff" * 4  # length unknown when the header was written
    file.write_bytes(content)
    assert len(load(file)) == 11025


def test_a_few_missing_bytes_are_forgiven(tmp_path):
    file = save(tmp_path / "a.wav")
    file.write_bytes(file.read_bytes()[:-20])
    assert len(load(file)) == 11015


def test_nan_silence_and_lengths(tmp_path):
    hole = tone()
    hole[100:103] = np.nan
    assert fault_of(save(tmp_path / "nan.wav", hole, subtype="FLOAT")) == Reason.NOT_FINITE
    assert fault_of(save(tmp_path / "inf.wav", np.full((9000, 1), np.inf), subtype="FLOAT")) == Reason.NOT_FINITE
    assert fault_of(save(tmp_path / "zeros.wav", 0 * tone())) == Reason.SILENT
    assert fault_of(save(tmp_path / "faint.wav", tone(level=5e-5), subtype="FLOAT")) == Reason.SILENT
    opposed = tone(channels=2) * [1, -1]
    assert fault_of(save(tmp_path / "opposed.wav", opposed)) == Reason.SILENT  # the channels cancel out
    assert fault_of(save(tmp_path / "blip.wav", tone(duration_s=0.01))) == Reason.TOO_SHORT
    assert fault_of(save(tmp_path / "long.wav", tone(duration_s=2)), max_duration_s=1.9) == Reason.TOO_LONG
    assert fault_of(save(tmp_path / "none.wav", tone(duration_s=0))) == Reason.EMPTY


def test_a_huge_header_is_not_believed(tmp_path, monkeypatch):
    file = save(tmp_path / "a.wav")
    content = bytearray(file.read_bytes())
    content[24:28] = (400_000_000).to_bytes(4, "little")  # its sample rate
    (tmp_path / "b.wav").write_bytes(content)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # nothing may be decoded
    assert fault_of(tmp_path / "b.wav") == Reason.CORRUPT
    assert fault_of(save(tmp_path / "c.wav", tone(duration_s=2)), max_duration_s=1) == Reason.TOO_LONG


def test_what_is_no_audio(tmp_path):
    (tmp_path / "text.wav").write_text("hello, I am not audio" * 40)
    (tmp_path / "zero.wav").touch()
    assert fault_of(tmp_path / "text.wav") == Reason.NOT_AUDIO
    assert fault_of(tmp_path / "zero.wav") == Reason.EMPTY


def test_paths_stay_in_the_source_folder(tmp_path):
    root = tmp_path / "source"
    inside, outside = save(root / "a.wav"), save(tmp_path / "b.wav")
    (root / "link.wav").symlink_to(inside)
    (root / "escape.wav").symlink_to(outside)
    (root / "circle.wav").symlink_to(root / "circle.wav")
    os.mkfifo(root / "pipe.wav")
    assert len(load(root / "link.wav")) == 11025
    for name in ("../b.wav", str(outside), "escape.wav"):
        assert fault_of(root / "x", name) == Reason.OUTSIDE
    for name in (".", "gone.wav", "circle.wav", "pipe.wav", "nul\0.wav", "x" * 300):
        assert fault_of(root / "x", name) == Reason.MISSING


@given(st.binary(max_size=400), st.sampled_from(["", "RIFF", "fLaC", "OggS", "FORM", "caff", ".snd"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_a_wave_or_a_reason(tmp_path_factory, content, magic):
    file = tmp_path_factory.getbasetemp() / "fuzz.wav"
    file.write_bytes(magic.encode() + content)
    try:
        load(file)
    except Fault as fault:
        assert fault.reason in (Reason.NOT_AUDIO, Reason.CORRUPT, Reason.EMPTY, Reason.TOO_SHORT, Reason.SILENT)  # noqa: PT017


@settings(deadline=None)
@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1))
def test_16_bit_sound_is_kept_bit_for_bit(samples):
    wave = np.array(samples, dtype=np.int16)
    np.testing.assert_array_equal(to_int16(wave.astype(np.float32) / np.float32(2**15)), wave)


@settings(deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1))
def test_louder_sound_is_scaled_not_clipped(samples):
    wave = np.array(samples, dtype=np.float32)
    made = to_int16(wave) / 2**15
    factor = max(1.0, wave.max() / (1 - 2**-15), -wave.min())
    np.testing.assert_allclose(made, wave / factor, atol=2**-15)
