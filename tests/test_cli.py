"""The program as a person meets it: a fresh process, exit status, one line on standard error."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from foley_ray.audio.files import write_wav


def foley_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """The same in this process, for cases that load a model: a fresh one would import torch every time."""
    from foley_ray import cli

    monkeypatch.setattr(sys, "argv", ["foley", *map(str, words)])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("out_console", "error_console"):  # made before pytest took over the streams
            patch.setattr(cli, name, Console(stderr=name == "error_console", highlight=False, soft_wrap=True))
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def foley(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foley_ray.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=240)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "vae", "--data", "d", "--out", "o", "--preset", "huge"], "unknown preset 'huge'; choose one of: tiny"),
        (["train", "paint", "--data", "d", "--out", "o"], "task = 'paint'"),
        (["train", "vae", "--data", "d", "--out", "o", "--set", "speed=1"], "speed: no such setting"),
        (["train", "vae", "--data", "d", "--out", "o", "--set", "speed"], "'speed' is not of the form key=value"),
        (["train", "vae", "--out", "o"], "Missing option '--data'"),
        (["generate"], "give one prompt, or a text file of them with --prompts"),
        (["generate", "rain", "--steps", "0"], "steps = 0"),
        (["generate", "rain", "--duration", "31"], "duration_s = 31.0"),
        (["generate", "rain", "--guidance", "0.5"], "guidance = 0.5"),
        (["generate", "rain", "--sampler", "euler"], "sampler = 'euler'"),
        (["ingest", "s", "--out", "o", "--eval-share", "2"], "eval_share = 2.0"),
        (["gnerate"], "No such command 'gnerate'"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(words: list[str], said: str, tmp_path: Path) -> None:
    done = foley(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "", "--model", "{model}"], "a prompt is empty"),
        (["generate", "bark " * 100, "--model", "{model}"], "prompt has 100 tokens, more than 75"),
        (["generate", "rain", "--model", "{model}/vae"], "is no model folder: it has no foley.json"),
        (["generate", "rain", "--model", "{model}", "--targets", "nowhere"], "no folder of target sounds"),
        (["generate", "rain", "--model", "{model}", "--seed", "-1"], "--seed -1 must lie between"),
        (["generate", "rain", "--model", "{model}", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["train", "diffusion", "--preset", "tiny", "--data", "d", "--out", "o"], "no dataset at"),
        (["assemble", "{model}", "nowhere", "--out", "o"], "no model folder at nowhere"),
    ],
)
def test_a_wrong_thing_is_named(words: list[str], said: str, tiny_model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = foley_here(capsys, monkeypatch, *(word.format(model=tiny_model) for word in words))
    assert status == 2
    assert said in err
    assert err.startswith("error: ")
    assert not list(tmp_path.rglob("*.wav"))


def test_generate_writes_clips_and_a_second_run_only_what_is_missing(
    tiny_model: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog bark\nrain\n")
    targets = tmp_path / "targets"
    for index in range(2):
        write_wav(targets / f"{index}.wav", np.random.default_rng(index).uniform(-0.5, 0.5, 9000).astype(np.float32), 22_050)
    words = ["generate", "--prompts", prompts, "--model", tiny_model, "--out", tmp_path / "out", "-n", 2, "--candidates", 2]
    words += ["--steps", 2, "--duration", 0.5, "--seed", 7, "--targets", targets, "--threshold", 0.99, "--max-redraws", 1]
    status, out, err = foley_here(capsys, monkeypatch, *words)
    assert status == 0, err
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(made) == 12
    assert sum(name.endswith(".wav") for name in made) == 4
    assert out.count("below the threshold after 1 redraws") == 4
    assert "4 clips, first seed 7" in out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = foley_here(capsys, monkeypatch, *words)[1]
    assert "4 clips (4 already there), first seed 7" in again
    assert len(again.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps
    for path in stamps:
        path.unlink()
    assert foley_here(capsys, monkeypatch, *words)[1] == out
    for name, data in made.items():
        assert name.endswith(".png") or (tmp_path / "out" / name).read_bytes() == data


def test_help_and_version_load_nothing_heavy() -> None:
    assert foley("--version").stdout.startswith("foley_ray 0.")
    code = "import sys, foley_ray.cli as c; sys.argv = ['foley', 'train', '--help']; c.main(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.rstrip().endswith("False")


def test_ctrl_c_says_that_it_stopped(capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foley_ray.cli.make_job", interrupted)
    status, _, err = foley_here(capsys, monkeypatch, "ingest", "a", "--out", "b")
    assert status == 130
    assert err == "stopped; what was finished is kept, and the same command goes on from there\n"


@pytest.mark.parametrize("seed", [7, None])
def test_generate_goes_on_with_the_seed_that_ctrl_c_tells(
    seed: int | None, tiny_model: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    from foley_ray import generate

    words = ["generate", "rain", "--model", tiny_model, "--out", tmp_path, "-n", 2, "--steps", 1, "--duration", 0.5]
    words += [] if seed is None else ["--seed", seed]
    write = generate.write_clip

    def interrupted(out: Path, index: int, *rest: object) -> Path:
        if index == 1:
            raise KeyboardInterrupt
        return write(out, index, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "write_clip", interrupted)
        status, out, err = foley_here(capsys, monkeypatch, *words)
    assert status == 130
    told = re.search(r"what was finished is kept, and the same command( with --seed (\d+))? goes on from there$", err.strip())
    assert told, err
    drawn = int(out.split("first seed ")[1].split()[0])
    assert (told[2], drawn) == (None, 7) if seed else told[2] == str(drawn)
    status, out, _ = foley_here(capsys, monkeypatch, *words, *([] if seed else ["--seed", told[2]]))
    assert "2 clips (1 already there)" in out
    assert len(list(tmp_path.glob("*.json"))) == 2
