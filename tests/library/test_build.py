"""A library built by Ray Data on the tiny model: what is in it, killed and gone on with, added to, locked."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from outcome import delivered
from sounds import save, tone
from wavinfo import WavInfoReader

from foley_ray.checkpoint import read_info
from foley_ray.clip import ClipRequest
from foley_ray.errors import ConfigError, DataError, ModelError, OutputError
from foley_ray.jobfile import LibraryJob, Pool
from foley_ray.library.build import build
from foley_ray.library.catalogue import search
from foley_ray.library.plan import expand, load_plan
from foley_ray.library.report import TRY_AGAIN, Report
from foley_ray.library.store import Store
from foley_ray.pipeline import Pipeline

PLAN = """\
library: Test Sounds
creator: FRAY
source: TEST
date: 2026-11-20
keywords: [test]
clip: {duration_s: 0.5, candidates: 2, steps: 2}
gates: {silence_dbfs: null, clipped: null, dc: null, similarity: null}
categories:
  - catid: ANMLDog
    name: "Dog {mood}"
    prompts: ["a {mood} dog barks"]
    vary: {mood: ["<b>angry</b>", =small]}
    seeds: 2
  - catid: RAIN
    name: Rain
    prompts: [rain on leaves]
    seeds: [3, 4]
    clip: {loop: true, threshold: 0.9999, max_redraws: 1}
  - catid: BELLAnml
    name: Bell
    prompts: [a cow bell, a sheep bell]
    gates: {similarity: -1}
  - catid: VEHMisc
    name: Motor
    prompts: [a motor]
    seeds: 2
    targets: motors
  - catid: HMNCough
    name: Cough
    prompts: ["TOOLONG"]
""".replace("TOOLONG", "a " * 100)
"""Eleven clips: 9 delivered, 1 that is like another, 1 that fails."""


def write_plan(folder: Path) -> Path:
    (folder / "plan.yaml").write_text(PLAN)
    for index, hz in enumerate((110, 3000)):
        save(folder / "motors" / f"{index}.wav", tone(hz=hz))
    return folder / "plan.yaml"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    return write_plan(tmp_path)


@pytest.fixture(scope="module")
def unbroken(ray_local, tiny_model: Path, tmp_path_factory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("unbroken")
    write_plan(folder)
    seen: list = []
    report = build(LibraryJob(plan=folder / "plan.yaml", out=folder / "library", model=tiny_model), seen.append)
    assert seen[-1].stages["rank"] >= seen[-1].stages["keep"] == seen[-1].total == 2  # the redraw of the two loops
    assert {progress.total for progress in seen} == {11, 2}
    return folder, report


def test_the_report_counts_every_clip_once(unbroken) -> None:
    folder, report = unbroken
    assert (report.delivered, report.made, report.reused) == (9, 10, 0)
    assert report.rejected == {"similarity": 1}
    assert list(report.rejections) == ["BELLAnml_Bell 02_FRAY_TEST"]
    assert report.rejections["BELLAnml_Bell 02_FRAY_TEST"].startswith("it is like BELLAnml_Bell 01_FRAY_TEST: cosine")
    assert list(report.failed) == ["HMNCough_Cough 01_FRAY_TEST"]
    assert report.failed["HMNCough_Cough 01_FRAY_TEST"].startswith("condition: prompt has 100 tokens, more than 75")
    assert report.status == TRY_AGAIN
    assert set(report.busy_s) == {"condition", "sample", "vocode", "rank"}
    written = json.loads((folder / "library/report.json").read_text())
    assert written["failed"] == report.failed
    assert "## Failed" in (folder / "library/report.md").read_text()


def test_the_files_say_what_they_are(unbroken, tiny_model: Path) -> None:
    library = unbroken[0] / "library"
    manifest = json.loads((library / "manifest.json").read_text())
    assert {clip["file"] for clip in manifest["clips"]} == {name for name in delivered(library) if name.endswith(".wav")}
    assert len(manifest["clips"]) == 9
    for clip in manifest["clips"]:
        found = WavInfoReader(str(library / clip["file"]))
        assert (found.fmt.sample_rate, found.fmt.bits_per_sample) == (48_000, 24)
        assert found.bext.originator_ref == f"FOLEYRAY{clip['id']}"
        assert found.bext.max_true_peak == clip["true_peak_dbtp"] == pytest.approx(-1, abs=0.02)
        assert found.ixml.project == "Test Sounds"
        assert clip["score"] == max(clip["candidate_scores"])
        assert len(clip["candidate_scores"]) == (4 if clip["loop"] else 2)
        assert clip["passed_threshold"] == (not clip["loop"])
        told = ElementTree.fromstring(found.ixml.source).findtext("USER/TARGET") or "prompt"
        assert told.startswith(clip["target"])
        assert clip["model"] == read_info(tiny_model).digest
        assert clip["duration_s"] == pytest.approx(len(sf.read(library / clip["file"])[0]) / 48_000, abs=1e-6)
    assert [clip["target"] for clip in manifest["clips"] if clip["catid"] == "VEHMisc"] == ["0.wav", "1.wav"]
    assert manifest["clips"][0]["file"] == "Animals/ANMLDog_Dog B Angry B 01_FRAY_TEST.wav"


def test_the_chosen_wave_is_that_of_the_pipeline(unbroken, tiny_model: Path) -> None:
    folder, _ = unbroken
    store, clips = Store(folder / "library"), expand(load_plan(folder / "plan.yaml"), read_info(tiny_model).digest)
    manifest = {clip["id"]: clip for clip in json.loads((folder / "library/manifest.json").read_text())["clips"]}
    wanted = [clip for clip in clips if clip.id in manifest]
    pipeline = Pipeline(tiny_model)
    target_D = {f"{index}.wav": heard_D for index, heard_D in enumerate(pipeline.rank.embed_folder(folder / "motors")[1])}
    targets = [target_D.get(manifest[clip.id]["target"]) for clip in wanted]
    assert sum(target is not None for target in targets) == 2
    requests = [ClipRequest(clip.prompt, clip.seed, clip.settings, t) for clip, t in zip(wanted, targets, strict=True)]
    for clip, made in zip(wanted, pipeline.generate(requests), strict=True):
        known = manifest[clip.id]
        np.testing.assert_allclose(known["candidate_scores"], made.scores, atol=1e-4)
        stored_T = store.wave(clip.id, made.best.index, clip.settings.candidates)
        np.testing.assert_allclose(stored_T, made.wave_T, atol=1e-4)
        assert known["novelty"] == pytest.approx(made.best.novelty, abs=1e-3)
        assert known["candidate"] == made.best.index or np.ptp(sorted(made.scores)[-2:]) < 1e-4


def test_the_catalogue_is_for_machines_spreadsheets_and_people(unbroken, tiny_model: Path) -> None:
    library = unbroken[0] / "library"
    table = pq.read_table(library / "catalogue.parquet")
    assert len(table) == 9
    np.testing.assert_allclose(np.linalg.norm(np.stack(table["embedding"].to_numpy()), axis=1), 1, atol=1e-5)
    with (library / "catalogue.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == table["file"].to_pylist()
    assert float(rows[0]["true_peak_dbtp"]) < 0
    page = (library / "index.html").read_text()
    assert page.count("<b>") == 0  # a prompt's own tags are text
    assert "\\u003cb>angry" in page
    assert "__DATA__" not in page
    found = search(library, "a dog", tiny_model, 3)
    assert [cosine for cosine, _ in found] == sorted((cosine for cosine, _ in found), reverse=True)
    assert (library / found[0][1]["file"]).is_file()
    with pytest.raises(DataError, match="no catalogue in"):
        search(library / "none", "a dog", tiny_model)


def test_the_pictures_of_a_very_large_library_lie_beside_its_page(unbroken, tiny_model: Path, monkeypatch) -> None:
    folder, _ = unbroken
    library, job = folder / "library", LibraryJob(plan=folder / "plan.yaml", out=folder / "library", model=tiny_model)
    before = delivered(library)
    monkeypatch.setattr("foley_ray.library.catalogue.PICTURED", 8)
    build(job)
    large = delivered(library)
    assert large.keys() - before.keys() == {"pictures/0.js"}
    assert {name for name in before if before[name] != large[name]} == {"index.html"}
    assert large["pictures/0.js"].startswith(b'pictured(0, [{"peaks": ')
    assert large["pictures/0.js"].count(b"levels") == 9
    monkeypatch.undo()
    build(job)
    assert delivered(library) == before


@pytest.mark.soak
def test_killed_in_the_middle_it_ends_as_if_it_never_was(unbroken, tiny_model: Path, plan_file: Path, tmp_path: Path) -> None:
    """SIGKILL of the building process when two clips are made; what a run leaves under way is put there by hand too."""
    import ray

    library = tmp_path / "library"
    command = [sys.executable, "-m", "foley_ray.cli", "library", "build", plan_file, "--out", library, "--model", tiny_model]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while len(Store(library).draws()) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)
    job = LibraryJob(plan=plan_file, out=library, model=tiny_model)
    with pytest.raises(OutputError, match=r"another run is building .*library: wait for it"):
        build(job)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (library / "manifest.json").exists()
    (library / ".foley/tmp/half").write_bytes(b"RIFF")
    report = build(job)
    assert report.reused >= 2
    assert report.delivered == 9
    assert delivered(library) == delivered(unbroken[0] / "library")


@pytest.mark.soak
def test_when_the_hours_are_over_the_next_run_goes_on(unbroken, tiny_model: Path, plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(PLAN + "budget: {hours: 0.000001}\n")
    library = tmp_path / "library"
    report = build(LibraryJob(plan=plan_file, out=library, model=tiny_model))
    assert 1 <= report.made + report.reused < 10
    assert "not made yet: the hours of the run were over" in report.failed.values()
    assert report.status == TRY_AGAIN
    plan_file.write_text(PLAN)
    build(LibraryJob(plan=plan_file, out=library, model=tiny_model))
    assert delivered(library) == delivered(unbroken[0] / "library")


@pytest.fixture
def whole(unbroken, plan_file: Path, tmp_path: Path) -> Path:
    """A copy of the library without the clip that fails: nothing is left of it to make."""
    plan_file.write_text(PLAN.split("  - catid: HMNCough")[0])
    shutil.copytree(unbroken[0] / "library", tmp_path / "library")
    return tmp_path / "library"


def test_redraws_that_the_hours_left_no_time_for_are_left_for_another_run(
    tiny_model: Path, plan_file: Path, whole: Path
) -> None:
    store, plan = Store(whole), plan_file.read_text()
    redraws = list(store.root.rglob("*-1.npz"))
    assert len(redraws) == 2
    for path in redraws:
        path.unlink()
    stranger = redraws[0].with_name("0" * 16 + "-0.npz")
    stranger.write_bytes(b"of a clip that left the plan")
    plan_file.write_text(plan + "budget: {hours: 0.000001}\n")
    job = LibraryJob(plan=plan_file, out=whole, model=tiny_model, prune=True)
    report = build(job)
    assert (report.failed, report.out_of_time, report.status) == ({}, True, TRY_AGAIN)
    assert "the hours of the run were over" in report.summary()
    assert json.loads((whole / "report.json").read_text())["out_of_time"]
    assert stranger.exists(), "pruned though something was left to make"
    plan_file.write_text(plan)
    report = build(job)
    assert (report.out_of_time, report.status) == (False, 0)
    assert all(path.exists() for path in redraws)
    assert not stranger.exists()


def test_a_stored_wave_that_was_damaged_is_named_when_it_is_delivered(tiny_model: Path, plan_file: Path, whole: Path) -> None:
    clip = json.loads((whole / "manifest.json").read_text())["clips"][0]
    (whole / clip["file"]).unlink()
    draw = whole / ".foley/made" / clip["id"][:2] / f"{clip['id']}-0.npz"
    data = bytearray(draw.read_bytes())
    data[data.index(b"wave_NT.npy") + 1000] ^= 1
    draw.write_bytes(data)
    with pytest.raises(OutputError, match=rf"^{draw} is damaged \(Bad CRC-32 .*: delete it and build again$"):
        build(LibraryJob(plan=plan_file, out=whole, model=tiny_model))


def test_the_command_ends_with_a_status_for_the_scheduler(unbroken, tiny_model: Path, capsys, monkeypatch) -> None:
    from foley_ray import cli

    folder, _ = unbroken
    words = ["library", "build", folder / "plan.yaml", "--out", folder / "library", "--model", tiny_model]
    monkeypatch.setattr(sys, "argv", ["foley", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == TRY_AGAIN
    assert "9 delivered, 0 made, 10 reused, 1 rejected, 1 failed" in capsys.readouterr().out


@pytest.mark.soak
def test_a_second_run_makes_nothing_and_a_longer_plan_only_what_is_new(unbroken, tiny_model: Path, plan_file: Path) -> None:
    library = unbroken[0] / "library"
    before, stamps = delivered(library), {path: path.stat().st_mtime_ns for path in library.rglob("*.wav")}
    changed = PLAN.replace(
        "  - catid: HMNCough", "  - catid: GLASBrk\n    name: Glass\n    prompts: [glass]\n  - catid: HMNCough"
    )
    plan_file.write_text(changed.replace("[rain on leaves]", "[rain on leaves]\n    keywords: [wet]"))
    report = build(LibraryJob(plan=plan_file, out=library, model=tiny_model))
    assert (report.made, report.reused, report.delivered) == (1, 10, 10)
    assert {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == set((library / "Rain").iterdir())
    plan_file.write_text(PLAN)  # and back: what the plan no longer has goes away
    report = build(LibraryJob(plan=plan_file, out=library, model=tiny_model))
    assert (report.made, report.reused) == (0, 10)
    assert delivered(library) == before


@pytest.mark.soak
def test_full_groups_give_bitwise_the_same_whoever_is_in_them(
    unbroken, tiny_model: Path, plan_file: Path, tmp_path: Path
) -> None:
    job = LibraryJob(plan=plan_file, out=tmp_path / "library", model=tiny_model, group=3)
    build(job)
    made = {path: path.read_bytes() for path in (tmp_path / "library/.foley/made").rglob("*.npz")}
    for path in sorted(made)[::2]:
        path.unlink()
    build(job)
    assert {path: path.read_bytes() for path in made} == made


def test_what_cannot_work_says_why(ray_local, tiny_model: Path, plan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="has other things in it"):
        build(LibraryJob(plan=plan_file, out=other, model=tiny_model))
    with pytest.raises(ModelError, match="no model folder at"):
        build(LibraryJob(plan=plan_file, out=tmp_path / "l", model=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"the pools need at least 9.* CPUs at once, but Ray has 2"):
        build(LibraryJob(plan=plan_file, out=tmp_path / "l", model=tiny_model, pools={"sample": Pool(cpus=9)}))
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
