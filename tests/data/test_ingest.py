"""The ingest against real files with every fault, on a real Ray of two CPUs."""

import fcntl
import hashlib
import io
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.data import ingest as ingest_module
from foley_ray.data.ingest import MAX_DEATHS, IngestSettings, _Fault, _int16, ingest, load_wave
from foley_ray.data.manifest import QUARANTINE_SCHEMA, ROW_SCHEMA, Reason, load_info
from foley_ray.data.procedural import write_recordings
from foley_ray.data.sources import read_source
from foley_ray.errors import OutputError, SourceError

RATE_HZ = 22050


def tone(rate_hz=RATE_HZ, duration_s=0.5, channels=1, level=0.5, hz=440.0):
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)
    return np.stack([wave] * channels, axis=1)


def save(file, wave=None, rate_hz=RATE_HZ, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(rate_hz) if wave is None else wave, rate_hz, **options)
    return file


def halve(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file


def rows_of(source):
    """The rows of a source as the driver hands them to the tasks."""
    recordings = read_source(source)[1]
    return [ingest_module._row(n, recording, IngestSettings()) | {"sha256": "-"} for n, recording in enumerate(recordings)]


def fault_of(path, root=None, **options):
    with pytest.raises(_Fault) as caught:
        load_wave(path, root or path.parent, RATE_HZ, IngestSettings(**options))
    return caught.value.reason


# ----------------------------------------------------------------------------------------- one file at a time, without Ray


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
    wave = load_wave(file, tmp_path, RATE_HZ, IngestSettings())
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
    assert len(load_wave(file, tmp_path, RATE_HZ, IngestSettings())) == 11025


def test_a_few_missing_bytes_are_forgiven(tmp_path):
    file = save(tmp_path / "a.wav")
    file.write_bytes(file.read_bytes()[:-20])
    assert len(load_wave(file, tmp_path, RATE_HZ, IngestSettings())) == 11015


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
    assert len(load_wave(root / "link.wav", root, RATE_HZ, IngestSettings())) == 11025
    for path in (root / "../b.wav", root / outside, root / "escape.wav"):
        assert fault_of(path, root) == Reason.OUTSIDE
    for path in (root, root / "gone.wav", root / "circle.wav", root / "pipe.wav", root / "nul\0.wav", root / ("x" * 300)):
        assert fault_of(path, root) == Reason.MISSING


@given(st.binary(max_size=400), st.sampled_from(["", "RIFF", "fLaC", "OggS", "FORM", "caff", ".snd"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_a_wave_or_a_reason(tmp_path_factory, content, magic):
    file = tmp_path_factory.getbasetemp() / "fuzz.wav"
    file.write_bytes(magic.encode() + content)
    try:
        load_wave(file, file.parent, RATE_HZ, IngestSettings())
    except _Fault as fault:
        assert fault.reason in (Reason.NOT_AUDIO, Reason.CORRUPT, Reason.EMPTY, Reason.TOO_SHORT, Reason.SILENT)  # noqa: PT017


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1))
def test_16_bit_sound_is_kept_bit_for_bit(samples):
    wave = np.array(samples, dtype=np.int16)
    np.testing.assert_array_equal(_int16(wave.astype(np.float32) / np.float32(2**15)), wave)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1))
def test_louder_sound_is_scaled_not_clipped(samples):
    wave = np.array(samples, dtype=np.float32)
    made = _int16(wave) / 2**15
    factor = max(1.0, wave.max() / (1 - 2**-15), -wave.min())
    np.testing.assert_allclose(made, wave / factor, atol=2**-15)


# ------------------------------------------------------------------------------------------------------ a whole source


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A source with one row for each reason, and good rows of several formats between them."""
    root = tmp_path_factory.mktemp("source")
    save(root / "good.wav")
    save(root / "studio.wav", tone(48000, channels=2, hz=600), 48000, subtype="PCM_24")
    save(root / "phone.wav", tone(8000, hz=300), 8000)
    save(root / "music.mp3", tone(44100, channels=2, hz=700), 44100)
    save(root / "web.ogg", tone(44100, channels=2, hz=800), 44100)
    halve(save(root / "truncated.wav", tone(duration_s=1)))
    (root / "text.wav").write_text("not audio " * 50)
    (root / "zero.wav").touch()
    hole = tone()
    hole[7] = np.nan
    save(root / "nan.wav", hole, subtype="FLOAT")
    save(root / "silent.wav", 0 * tone())
    save(root / "blip.wav", tone(duration_s=0.01))
    save(root / "long.wav", tone(8000, duration_s=31), 8000)
    (root / "copy.wav").write_bytes((root / "good.wav").read_bytes())
    save(root / "untold.wav", tone(hz=900))
    lines = ["file,caption,class,split,recording"]
    lines += [f"{name},a {name.split('.')[0]} sound,beep,,{name}" for name in (
        "truncated.wav", "good.wav", "studio.wav", "text.wav", "phone.wav", "zero.wav", "nan.wav", "music.mp3", "silent.wav",
        "blip.wav", "long.wav", "copy.wav", "web.ogg", "gone.wav", "../escape.wav",
    )]  # fmt: skip
    lines.append("untold.wav,,,,u")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


REASONS = {
    "truncated.wav": "corrupt",
    "text.wav": "not_audio",
    "zero.wav": "empty",
    "nan.wav": "not_finite",
    "silent.wav": "silent",
    "blip.wav": "too_short",
    "long.wav": "too_long",
    "copy.wav": "duplicate",
    "gone.wav": "missing",
    "../escape.wav": "outside",
    "untold.wav": "no_caption",
}
LENIENT = IngestSettings(max_bad_share=0.9)


@pytest.fixture(scope="module")
def dataset(faulty, tmp_path_factory, ray_local):
    out = tmp_path_factory.mktemp("out") / "dataset"
    seen = []
    info = ingest(
        faulty, out, sample_rate_hz=RATE_HZ, settings=LENIENT, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (16, 16)
    assert load_info(out) == info
    return out


def test_every_fault_lands_under_its_reason(dataset, faulty):
    table = pq.read_table(dataset / "quarantine.parquet")
    assert table.schema.equals(QUARANTINE_SCHEMA)
    rows = {row["source"]: row for row in table.to_pylist()}
    assert {source: row["reason"] for source, row in rows.items()} == REASONS
    assert all(row["detail"] for row in rows.values())
    assert rows["copy.wav"]["detail"] == "the same bytes as good.wav"
    assert rows["copy.wav"]["sha256"] == hashlib.sha256((faulty / "good.wav").read_bytes()).hexdigest()
    assert rows["gone.wav"]["sha256"] is rows["../escape.wav"]["sha256"] is None
    assert load_info(dataset).quarantined == dict.fromkeys(sorted(REASONS.values()), 1)


def test_good_rows_follow_the_schema_in_source_order(dataset, faulty):
    table = pq.read_table(dataset / "data")
    assert table.schema.equals(ROW_SCHEMA)
    rows = table.to_pylist()
    assert [row["source"] for row in rows] == ["good.wav", "studio.wav", "phone.wav", "music.mp3", "web.ogg"]
    for row in rows:
        sound = soundfile.info(io.BytesIO(row["audio"]))
        assert (sound.format, sound.subtype, sound.channels, sound.samplerate) == ("FLAC", "PCM_16", 1, RATE_HZ)
        assert row["sample_rate_hz"] == RATE_HZ
        assert row["duration_s"] == pytest.approx(sound.duration)
        assert row["sha256"] == hashlib.sha256((faulty / row["source"]).read_bytes()).hexdigest()
    first = rows[0]
    wave, _ = soundfile.read(io.BytesIO(first["audio"]), dtype="int16")
    np.testing.assert_array_equal(wave, soundfile.read(faulty / "good.wav", dtype="int16")[0])
    assert (first["caption"], first["class"], first["recording"], first["shippable"]) == (
        "a good sound",
        "beep",
        "good.wav",
        False,
    )


def test_the_folder_holds_nothing_else(dataset):
    assert sorted(str(path.relative_to(dataset)) for path in dataset.rglob("*")) == [
        "data",
        "data/part-000000000.parquet",
        "dataset.json",
        "quarantine.parquet",
    ]
    assert [path.name for path in dataset.parent.iterdir()] == ["dataset"]


def test_the_same_source_gives_the_same_bytes_however_it_is_cut_up(ray_local, tmp_path, monkeypatch):
    source = write_recordings(tmp_path / "source", count_per_class=3)
    one = ingest(source, tmp_path / "one", sample_rate_hz=16000)
    again = ingest(source, tmp_path / "again", sample_rate_hz=16000)
    monkeypatch.setattr(ingest_module, "FILE_ROWS", 7)
    cut = ingest(source, tmp_path / "cut", sample_rate_hz=16000)
    assert one == again == cut
    assert one.rows("eval") == 10
    assert one.shippable_rows == 30
    files = sorted((tmp_path / "cut" / "data").iterdir())
    assert [file.name for file in files] == [f"part-{first:09d}.parquet" for first in range(0, 30, 7)]
    tables = [pq.read_table(tmp_path / name / "data") for name in ("one", "again", "cut")]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_row_groups_are_bounded(ray_local, tmp_path):
    source = write_recordings(tmp_path / "source", count_per_class=2)
    rows = [
        ingest_module._row(n, row, IngestSettings()) | {"sha256": ""}
        for n, row in enumerate(ingest_module.read_source(source)[1])
    ]
    (tmp_path / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "ROW_GROUP_BYTES", 100_000)
        ingest_module._write_file(pa.Table.from_pylist(rows), tmp_path / "data", source, RATE_HZ, IngestSettings())
    parquet = pq.ParquetFile(tmp_path / "data" / "part-000000000.parquet")
    sizes = [sum(map(len, parquet.read_row_group(n)["audio"].to_pylist())) for n in range(parquet.num_row_groups)]
    assert len(sizes) > 3
    assert max(sizes) < 300_000  # the bound and one recording of 3 s


def test_a_recording_that_kills_its_workers_is_blamed(tmp_path):
    save(tmp_path / "a.wav")
    save(tmp_path / "b.wav", tone(hz=500))
    (tmp_path / "metadata.csv").write_text("file,caption\na.wav,a\nb.wav,b\n")
    rows = [
        ingest_module._row(n, row, IngestSettings()) | {"sha256": ""}
        for n, row in enumerate(ingest_module.read_source(tmp_path)[1])
    ]
    batch, data = pa.Table.from_pylist(rows), tmp_path / "data"
    data.mkdir()
    journal = data / "part-000000000.journal"
    for attempt in range(1, MAX_DEATHS + 1):
        with journal.open("a") as diary:
            diary.write("0\n1\n")  # an attempt that got as far as row 1 and died there
        assert ingest_module._deaths(journal) == {1: attempt}
    outcomes = ingest_module._write_file(batch, data, tmp_path, RATE_HZ, IngestSettings()).to_pylist()
    assert [outcome["reason"] for outcome in outcomes] == ["", "corrupt"]
    assert "workers died" in outcomes[1]["detail"]
    assert [file.name for file in data.iterdir()] == ["part-000000000.parquet"]


def test_a_file_that_crashes_the_decoder_does_not_hang_the_ingest(ray_local, tmp_path, monkeypatch):
    source, name = small_source(tmp_path / "s"), "2.wav"

    def write_with_a_deadly_decoder(batch, **options):  # local, so that Ray ships it to the worker by value
        load_wave = ingest_module.load_wave
        ingest_module.load_wave = lambda path, *rest: os._exit(11) if path.name == name else load_wave(path, *rest)
        try:
            return ingest_module._write_file(batch, **options)
        finally:
            ingest_module.load_wave = load_wave

    monkeypatch.setattr(ingest_module, "_write_file", write_with_a_deadly_decoder)
    info = ingest(source, tmp_path / "out", sample_rate_hz=RATE_HZ)
    assert (info.rows(), info.quarantined) == (3, {"corrupt": 1})
    assert [file.name for file in (tmp_path / "out" / "data").iterdir()] == ["part-000000000.parquet"]


def test_a_file_name_that_is_no_utf8(ray_local, tmp_path):
    save(tmp_path / "s" / "Rain" / "a.wav").rename(tmp_path / "s" / "Rain" / os.fsdecode(b"caf\xe9.wav"))
    assert ingest(tmp_path / "s", tmp_path / "out", sample_rate_hz=RATE_HZ).rows() == 1


# ---------------------------------------------------------------------------------------------------- splits and verdict


def small_source(root, count=4, header="file,caption", row="{n}.wav,sound {n}"):
    for n in range(count):
        save(root / f"{n}.wav", tone(duration_s=0.1, hz=300 + 50 * n))
    (root / "metadata.csv").write_text(
        "\n".join([header, *(row.format(n=n, half="train" if n % 2 else "eval") for n in range(count))])
    )
    return root


def test_rows_of_one_recording_share_a_split(ray_local, tmp_path):
    source = tmp_path / "source"
    for n in range(12):
        save(source / f"{n}.wav", tone(duration_s=0.1, hz=300 + 50 * n))
    lines = [f"{n}.wav,x,take {n // 3}" for n in range(12)]
    (source / "metadata.csv").write_text("\n".join(["file,caption,recording", *lines]))
    info = ingest(source, tmp_path / "out", sample_rate_hz=RATE_HZ, settings=IngestSettings(eval_share=0.5, seed=3))
    rows = pq.read_table(tmp_path / "out" / "data", columns=["recording", "split"]).to_pylist()
    assert len({(row["recording"], row["split"]) for row in rows}) == 4
    assert info.straddling_recordings == 0
    assert info.classes == ()


def test_a_source_that_splits_a_recording_is_kept_and_reported(ray_local, tmp_path, caplog):
    source = small_source(tmp_path / "s", header="file,caption,split,recording", row="{n}.wav,sound,{half},same")
    with caplog.at_level(logging.WARNING):
        info = ingest(source, tmp_path / "out", sample_rate_hz=RATE_HZ)
    assert (info.straddling_recordings, info.rows("train"), info.rows("eval")) == (1, 2, 2)
    assert "1 recordings have rows in both train and eval" in caplog.text


def test_too_many_bad_rows_leave_a_report_and_nothing_else(ray_local, faulty, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SourceError, match=r"11 of 16 recordings are bad \(1 .*more than max_bad_share 0\.5; each is listed in"):
        ingest(faulty, out, sample_rate_hz=RATE_HZ)
    assert [path.name for path in tmp_path.iterdir()] == ["out.quarantine.csv"]
    assert pa_csv.read_csv(tmp_path / "out.quarantine.csv")["reason"].to_pylist().count("corrupt") == 1
    ingest(small_source(tmp_path / "s"), out, sample_rate_hz=RATE_HZ)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]  # the report went with the next good run


def test_nothing_usable_is_refused_whatever_the_share(ray_local, tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "metadata.csv").write_text("file,caption\ngone.wav,a\n")
    with pytest.raises(SourceError, match="none is usable"):
        ingest(source, tmp_path / "out", sample_rate_hz=RATE_HZ, settings=IngestSettings(max_bad_share=1))


# --------------------------------------------------------------------------------------------------------- output folder


def test_a_finished_dataset_is_replaced_only_on_demand(ray_local, tmp_path):
    out = tmp_path / "out"
    first = ingest(small_source(tmp_path / "one", count=2), out, sample_rate_hz=RATE_HZ)
    with pytest.raises(OutputError, match="is a finished dataset already"):
        ingest(tmp_path / "one", out, sample_rate_hz=RATE_HZ)
    second = ingest(small_source(tmp_path / "two"), out, sample_rate_hz=RATE_HZ, overwrite=True)
    assert load_info(out) == second != first
    assert pq.read_table(out / "data").num_rows == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]


def test_other_peoples_folders_are_never_replaced(tmp_path):
    source, out = small_source(tmp_path / "s", count=1), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(OutputError, match="has other things in it"):
        ingest(source, out, sample_rate_hz=RATE_HZ, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        ingest(source, out / "thesis.tex", sample_rate_hz=RATE_HZ, overwrite=True)
    with pytest.raises(OutputError, match="cannot write"):
        ingest(source, out / "thesis.tex" / "below", sample_rate_hz=RATE_HZ)


def test_leftovers_of_killed_runs_are_cleared(ray_local, tmp_path):
    source, out = small_source(tmp_path / "s", count=2), tmp_path / "out"
    info = ingest(source, out, sample_rate_hz=RATE_HZ)
    out.rename(tmp_path / ".out.replaced")  # killed between the two renames of an overwriting run
    stale = tmp_path / ".out.partial" / "data" / "part-000000999.parquet"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with pytest.raises(OutputError, match="finished dataset already"):
        ingest(source, out, sample_rate_hz=RATE_HZ)  # the old one is back in its place
    assert load_info(out) == info
    ingest(source, out, sample_rate_hz=RATE_HZ, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]
    assert [file.name for file in (out / "data").iterdir()] == ["part-000000000.parquet"]


def test_two_ingests_do_not_share_a_folder(tmp_path):
    source, folder = small_source(tmp_path / "s", count=1), tmp_path / ".out.partial"
    folder.mkdir()
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another run is writing dataset"):
        ingest(source, tmp_path / "out", sample_rate_hz=RATE_HZ)
    os.close(other)


def test_an_interrupt_leaves_nothing(ray_local, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(small_source(tmp_path / "s"), tmp_path / "out", sample_rate_hz=RATE_HZ, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_disk_error_in_a_worker_reaches_the_user_by_name(ray_local, tmp_path, capfd):
    source = small_source(tmp_path / "s")
    rows = [
        ingest_module._row(n, row, IngestSettings()) | {"sha256": ""}
        for n, row in enumerate(ingest_module.read_source(source)[1])
    ]
    with pytest.raises(OutputError, match=r"cannot write .*part-000000000\.parquet: No such file"):
        list(ingest_module._write_rows(rows, tmp_path / "gone", source, RATE_HZ, IngestSettings()))
    assert "open an issue" not in capfd.readouterr().err
