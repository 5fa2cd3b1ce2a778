"""Weights files from the user: the right ones load, the wrong ones are named, nothing in them runs."""

import hashlib
from pathlib import Path

import pytest
import torch

from foley_ray.errors import ConfigError, ModelError
from foley_ray.evaluation.published import load_published

State = dict[str, torch.Tensor]


def test_official_names_load_and_the_digest_is_the_files(published_weights: Path) -> None:
    for space, seconds, samples, name in (("vggish", 2.0, 32000, "VGGish"), ("panns", 0.5, 8000, "Cnn14 at 16 kHz")):
        path = published_weights / f"{space}.pth"
        found = load_published(space, path, seconds)
        assert found.spec.clip_samples == samples
        assert name in found.about
        assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        assert found.digest in found.about


def test_a_rate_that_is_not_known_is_no_cnn14(cnn14_states: dict[int, State], tmp_path: Path) -> None:
    eight = {name: value[:129, :, :256] if "stft" in name else value for name, value in cnn14_states[16000].items()}
    torch.save({"model": eight}, tmp_path / "cnn14_8k.pth")
    with pytest.raises(ModelError, match=r"window of 256 samples, and \[512, 1024\] are known.*Cnn14_mAP=0\.431"):
        load_published("panns", tmp_path / "cnn14_8k.pth", 4.0)


@pytest.mark.parametrize("space", ["vggish", "panns"])
def test_what_is_wrong_with_a_file_is_said(
    space: str, vggish_state: State, cnn14_states: dict[int, State], published_weights: Path, tmp_path: Path
) -> None:
    state = {"vggish": vggish_state, "panns": cnn14_states[32000]}[space]
    first, *_, last = state
    other = published_weights / ("panns.pth" if space == "vggish" else "vggish.pth")
    path = tmp_path / "w.pth"
    for content, told in (
        ({name: value for name, value in state.items() if name != last}, f"missing .*{last}"),
        (state | {"pproc.pca": torch.zeros(1)}, r"unexpected .*pproc\.pca"),
        (state | {last: torch.zeros(3)}, rf"{last} has shape \(3,\)"),
        ({"model": {first: 1}}, "no weights under any name"),
        ({"model": state, "trainer": Path("x")}, r"holds more than weights, pathlib"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=rf"w\.pth.*{told}.*--space {space} needs "):
            load_published(space, path, 4.0)
    path.write_bytes(b"<html>not found</html>")
    for wrong, told in ((path, "no file of weights"), (tmp_path / "none.pth", "no file of weights at"), (other, "missing")):
        with pytest.raises(ModelError, match=rf"{told}.*--space {space} needs "):
            load_published(space, wrong, 4.0)


def test_clips_too_short_for_a_patch_are_refused(published_weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seconds 0\.9 is too short .* 1 or more"):
        load_published("vggish", published_weights / "vggish.pth", 0.9)
