"""The same files on this machine and behind URIs."""

import pickle

import fsspec
import pytest
from sounds import encoded, lay_out

from foley_ray.data import storage as storage_module
from foley_ray.data.manifest import Reason
from foley_ray.data.sources import read_source
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.errors import SourceError

FILES = {
    "b.wav": None,
    "rain/a.wav": None,
    "rain/deep/x.txt": "x",
    "Rain/c.wav": None,
    ".hidden/y.wav": None,
    "._b.wav": b"mac",
}
SHOWN = ["b.wav", "Rain/c.wav", "rain/a.wav", "rain/deep/x.txt"]


@pytest.fixture
def memory(tmp_path):
    """The files in fsspec's memory filesystem, where no path of this machine leads."""
    lay_out(tmp_path, FILES)
    filesystem = fsspec.filesystem("memory")
    for name in FILES:
        filesystem.pipe(f"/bucket/set/{name}", (tmp_path / name).read_bytes())
    filesystem.pipe("/bucket/other.wav", encoded())
    yield "memory://bucket/set"
    filesystem.rm("/bucket", recursive=True)


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "fsspec+file://{}"])
def test_a_folder_by_any_address(tmp_path, form):
    lay_out(tmp_path / "a b", FILES)
    address = form.format(tmp_path / "a b").replace(" ", "%20" if form.startswith("file") else " ")
    storage = pickle.loads(pickle.dumps(Storage(address)))
    assert storage.names == SHOWN
    assert storage.sound(Place("rain/a.wav")).read() == (tmp_path / "a b" / "rain/a.wav").read_bytes()
    assert storage.sound(Place("rain/a.wav", 4, 8)).read() == (tmp_path / "a b" / "rain/a.wav").read_bytes()[4:12]
    assert (storage.folder is None) == form.startswith(("local", "fsspec"))


def test_memory_is_read_like_a_folder(memory, tmp_path):
    storage = Storage(memory)
    assert storage.names == SHOWN
    assert read_source(storage)[1] == read_source(tmp_path)[1]
    assert storage.sound(Place("Rain/../rain/a.wav")).read() == (tmp_path / "rain/a.wav").read_bytes()


@pytest.mark.parametrize(
    "name", ["../other.wav", "/bucket/other.wav", "rain/../../other.wav", "..", "..\\other.wav", "a\0.wav"]
)
def test_no_name_leads_out_of_a_uri(memory, name):
    with pytest.raises(Fault) as caught:
        Storage(memory).sound(Place(name))
    assert caught.value.reason == Reason.OUTSIDE


def test_what_is_not_there_or_too_large_is_a_fault(memory, tmp_path, monkeypatch):
    for storage in (Storage(memory), Storage(tmp_path)):
        for name in ("gone.wav", "rain"):
            with pytest.raises(Fault) as caught:
                storage.sound(Place(name))
            assert caught.value.reason == Reason.MISSING
            assert not storage.has(name)
        assert storage.has("rain/a.wav")
        with pytest.raises(Fault, match="breaks off"):
            storage.sound(Place("rain/deep/x.txt", 0, 100))
        with pytest.raises(Fault) as caught:
            storage.sound(Place("b.wav", 0, 2**40))  # as a tar header may claim: nothing is reserved for it
        assert caught.value.reason == Reason.TOO_LARGE
    monkeypatch.setattr(storage_module, "MAX_BYTES", 100)
    with pytest.raises(Fault, match="at most 100 are taken"):
        Storage(memory).sound(Place("b.wav"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/nowhere/at/all", "no folder at /nowhere/at/all"),
        ("file:///nowhere", "no folder at /nowhere"),
        ("memory://nowhere", "no folder at memory://nowhere: check the bucket"),
        ("smoke://signals", "cannot reach smoke://signals: Protocol not known"),
    ],
)
def test_addresses_that_lead_nowhere(address, said):
    with pytest.raises(SourceError, match=said):
        Storage(address)
