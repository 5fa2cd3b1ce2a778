import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foley_ray.errors import ModelError
from foley_ray.interchange.recognise import read_foreign
from foley_ray.interchange.weights import read_weights


class Surprise:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple:
        return (print, ("opened",))


def test_wrappers_and_numbers_are_taken_off(tmp_path: Path) -> None:
    weight = torch.arange(3.0)
    for content in (
        {"a": weight},
        {"state_dict": {"a": weight}, "epoch": 3, "loss": np.float64(0.5)},
        {"generator": {"a": weight}},
    ):
        torch.save(content, tmp_path / "w.pt")
        assert torch.equal(read_weights(tmp_path / "w.pt")["a"], weight)
    save_file({"a": weight}, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["a"], weight)


def test_an_object_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Surprise()}, tmp_path / "w.ckpt")
    with pytest.raises(
        ModelError, match=r"holds more than weights.*save its weights alone.*KEY being one of state_dict, generator, model"
    ):
        read_weights(tmp_path / "w.ckpt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(ModelError):
        read_weights(tmp_path / "old.pt")
    assert "opened" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip, it says", b"<html>not found</html>"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"no file of weights|no whole safetensors"):
        read_weights(tmp_path / name)


def test_weights_of_something_else_are_named(tmp_path: Path) -> None:
    torch.save({"lstm.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"no model that is known here \(such as lstm.weight\)"):
        read_foreign(tmp_path / "w.pt")
    torch.save({"hyperparameters": 1}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="it holds: hyperparameters"):
        read_foreign(tmp_path / "w.pt")
