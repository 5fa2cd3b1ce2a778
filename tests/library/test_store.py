"""The hidden folder of a library: damaged files, and locks."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from foley_ray.errors import OutputError
from foley_ray.library.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With one draw of a clip, and a target sound that was heard."""
    store = Store(tmp_path / "library")
    wave_T = np.full(100, 0.1, dtype=np.float32)
    row = {"candidate": [0], "score": [0.1], "audio_embedding": [np.ones(2)], "novelty": [2.0], "wave": [wave_T]}
    with store.locked():
        store.save_draw("ab12", 0, row)
        store.save_embedding("clap-0123", np.ones(2))
    return store


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_file_that_was_cut_off_is_named_with_what_to_do(store: Store, kept: int) -> None:
    for path in store.root.rglob("*.np[yz]"):
        path.write_bytes(path.read_bytes()[: min(kept, 100)] if path.suffix == ".npy" else path.read_bytes()[:kept])
    draw, heard = store.root / "made/ab/ab12-0.npz", store.root / "targets/clap-0123.npy"
    with pytest.raises(OutputError, match=rf"^{draw} is damaged \(.+\): delete it and build again$"):
        store.draw("ab12", 0)
    with pytest.raises(OutputError, match=rf"^{draw} is damaged \(.+\): delete it and build again$"):
        store.wave("ab12", 0, 1)
    with pytest.raises(OutputError, match=rf"^{heard} is damaged \(.+\): delete it and build again$"):
        store.embedding("clap-0123")


def test_only_a_lock_that_is_held_says_that_another_run_builds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.locked(), pytest.raises(OutputError, match=r"another run is building .*library: wait for it"), store.locked():
        pass

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)  # a file system without locks is none that a test could make
    with pytest.raises(OutputError, match=r"^cannot lock .*library: No locks available; choose"), store.locked():
        pass
