"""The ingest against real files with every fault, on a real Ray of two CPUs."""

import fcntl
import hashlib
import io
import json
import logging
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import soundfile
from sounds import RATE_HZ, encoded, halve, lay_out, save, tone

from foley_ray.data import ingest as ingest_module
from foley_ray.data.ingest import MAX_DEATHS, TASK_SCHEMA, IngestSettings, ingest
from foley_ray.data.manifest import QUARANTINE_SCHEMA, ROW_SCHEMA, load_info
from foley_ray.data.procedural import write_recordings
from foley_ray.data.sources import read_source
from foley_ray.data.storage import Storage
from foley_ray.errors import OutputError, SourceError


def rows_of(source):
    """The rows of a source as the driver hands them to the tasks."""
    recordings = read_source(source)[1]
    return [ingest_module._row(n, recording, IngestSettings()) | {"sha256": "-"} for n, recording in enumerate(recordings)]


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
    rows = rows_of(source)
    (tmp_path / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "ROW_GROUP_BYTES", 100_000)
        ingest_module._write_file(
            pa.Table.from_pylist(rows, TASK_SCHEMA), tmp_path / "data", Storage(source), RATE_HZ, IngestSettings()
        )
    parquet = pq.ParquetFile(tmp_path / "data" / "part-000000000.parquet")
    sizes = [sum(map(len, parquet.read_row_group(n)["audio"].to_pylist())) for n in range(parquet.num_row_groups)]
    assert len(sizes) > 3
    assert max(sizes) < 300_000  # the bound and one recording of 3 s


def test_a_recording_that_kills_its_workers_is_blamed(tmp_path):
    save(tmp_path / "a.wav")
    save(tmp_path / "b.wav", tone(hz=500))
    (tmp_path / "metadata.csv").write_text("file,caption\na.wav,a\nb.wav,b\n")
    rows = rows_of(tmp_path)
    batch, data = pa.Table.from_pylist(rows, TASK_SCHEMA), tmp_path / "data"
    data.mkdir()
    journal = data / "part-000000000.journal"
    for attempt in range(1, MAX_DEATHS + 1):
        with journal.open("a") as diary:
            diary.write("0\n1\n")  # an attempt that got as far as row 1 and died there
        assert ingest_module._deaths(journal) == {1: attempt}
    outcomes = ingest_module._write_file(batch, data, Storage(tmp_path), RATE_HZ, IngestSettings()).to_pylist()
    assert [outcome["reason"] for outcome in outcomes] == ["", "corrupt"]
    assert "workers died" in outcomes[1]["detail"]
    assert [file.name for file in data.iterdir()] == ["part-000000000.parquet"]


def test_a_recording_that_could_not_be_read_when_it_was_hashed_is_left_out(tmp_path):
    rows = rows_of(small_source(tmp_path / "s", count=2))
    rows[1]["sha256"] = None
    (tmp_path / "data").mkdir()
    batch = pa.Table.from_pylist(rows, TASK_SCHEMA)
    outcomes = ingest_module._write_file(batch, tmp_path / "data", Storage(tmp_path / "s"), RATE_HZ, IngestSettings())
    assert [outcome["reason"] for outcome in outcomes.to_pylist()] == ["", "missing"]
    assert pq.read_table(tmp_path / "data")["source"].to_pylist() == ["0.wav"]


def test_a_file_that_crashes_the_decoder_does_not_hang_the_ingest(ray_local, tmp_path, monkeypatch):
    source, name = small_source(tmp_path / "s"), "2.wav"

    def write_with_a_deadly_decoder(batch, **options):  # local, so that Ray ships it to the worker by value
        load_wave = ingest_module.load_wave
        ingest_module.load_wave = lambda storage, place, *rest: (
            os._exit(11) if place.name == name else load_wave(storage, place, *rest)
        )
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


# ------------------------------------------------------------------------------------------------------- other sources


def test_sounds_in_archives_and_behind_uris_give_the_same_dataset(ray_local, tmp_path, monkeypatch):
    """Files, tar members and Parquet cells of the same bytes; through local://, which is fsspec's and not ours."""
    sounds = [encoded(300 + 20 * n) for n in range(6)]
    sounds += [sounds[0], b"", b"no sound " * 9]
    captions = [[f"sound {n}", f"another {n}"] for n in range(9)]
    for name in "pt":
        (tmp_path / name).mkdir()
    cells = pa.table({"audio": [{"bytes": sound} for sound in sounds], "captions": captions})
    pq.write_table(cells, tmp_path / "p" / "p.parquet", row_group_size=4)
    with tarfile.open(tmp_path / "t" / "t.tar", "w") as tar:
        for n, sound in enumerate(sounds):
            for name, content in ((f"{n}.flac", sound), (f"{n}.json", json.dumps({"text": captions[n]}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    lay_out(tmp_path / "f", {f"{n}.flac": sound for n, sound in enumerate(sounds)})
    lines = [json.dumps({"file": f"{n}.flac", "captions": captions[n]}) for n in range(9)]
    (tmp_path / "f" / "metadata.jsonl").write_text("\n".join(lines))
    tables = {}
    for source, address in (("f", "{}"), ("t", "{}"), ("p", "{}"), ("t", "local://{}"), ("p", "local://{}")):
        out = tmp_path / "out"
        info = ingest(address.format(tmp_path / source), out, sample_rate_hz=RATE_HZ, settings=LENIENT, overwrite=True)
        assert info.quarantined == {"duplicate": 1, "empty": 1, "not_audio": 1}
        wanted = [name for name in ROW_SCHEMA.names if name not in ("source", "recording", "split")]
        tables[source, address] = (pq.read_table(out / "data"), pq.read_table(out / "quarantine.parquet"), info.digest)
        assert tables[source, address][0].select(wanted).equals(tables["f", "{}"][0].select(wanted))
        assert info.source.startswith(address.format(tmp_path / source))
        monkeypatch.setattr(ingest_module, "FILE_ROWS", 4)  # from here on several files
    for source in ("t", "p"):
        assert tables[source, "{}"] == tables[source, "local://{}"]
    first = tables["p", "{}"][0].to_pylist()[0]
    assert (first["caption"], first["other_captions"]) == ("sound 0", ["another 0"])


def test_rows_that_the_source_knows_to_be_lost_are_quarantined_by_their_reason(ray_local, tmp_path):
    tables = {"eval.csv": "audiocap_id,youtube_id,start_time,caption\n1,r1nicOVtvkQ,130,a\n2,UDGBjjwyaqE,20,b\n"}
    lay_out(tmp_path / "s", tables | {"1.wav": None})
    info = ingest(tmp_path / "s", tmp_path / "out", sample_rate_hz=RATE_HZ, layout="audiocaps")
    assert (info.rows("eval"), info.quarantined) == (1, {"missing": 1})
    (row,) = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert (row["source"], row["detail"]) == (
        "UDGBjjwyaqE_20",
        "no sound file is named after video UDGBjjwyaqE from 20 s, of eval.csv",
    )


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


def test_recordings_are_passed_over_by_name_and_a_name_of_nothing_is_refused(ray_local, tmp_path):
    for number, name in enumerate(("own/rain_1", "own/dog_1", "pack/rain_2", "pack/rain_3")):
        save(tmp_path / "in" / f"{name}.wav", tone(hz=300 + 100 * number))
    info = ingest(
        tmp_path / "in", tmp_path / "out", sample_rate_hz=RATE_HZ, settings=IngestSettings(without=("pack/*", "own/d*"))
    )
    assert (info.rows(), info.quarantined) == (1, {})
    for pattern, words in (
        ("packs/*", r"no recording of .* is named 'packs/\*'; names are such as own/dog_1.wav"),
        ("*", r"without '\*' nothing is left"),
    ):
        with pytest.raises(SourceError, match=words):
            ingest(tmp_path / "in", tmp_path / "no", sample_rate_hz=RATE_HZ, settings=IngestSettings(without=(pattern,)))
    assert not (tmp_path / "no").exists()


def test_too_many_bad_rows_leave_a_report_and_nothing_else(ray_local, faulty, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SourceError, match=r"11 of 16 recordings are bad \(1 .*more than max_bad_share 0\.5 .*; each is"):
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
    rows = rows_of(source)
    with pytest.raises(OutputError, match=r"cannot write .*part-000000000\.parquet: No such file"):
        list(ingest_module._write_rows(rows, tmp_path / "gone", Storage(source), RATE_HZ, IngestSettings()))
    assert "open an issue" not in capfd.readouterr().err
