"""UCS names: nothing that a file system, a terminal or another name could stumble over, whatever goes in."""

import re
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.errors import ConfigError
from foley_ray.library.ucs import clean, folder, lookup, stems, table

nasty = st.one_of(
    st.text(max_size=100),
    st.sampled_from(["CON", "nul", "..", "../../etc/passwd", "a_b", "\u202egpj.exe", "\x00\x1b[31m", "é" * 200, "", " . "]),
)


def test_the_table_is_that_of_8_2() -> None:
    assert len(table()) == 753
    assert len({line.category for line in table().values()}) == 82
    assert lookup("ANMLDog") == ("ANMLDog", "ANIMALS", "DOG")
    assert folder("FOODEat") == "Food Drink"
    assert all(re.fullmatch(r"[A-Za-z0-9]{2,12}", catid) for catid in table())


@pytest.mark.parametrize(("wrong", "hint"), [("ANMLDgo", "ANMLDog"), ("animals dog", "ANML"), ("anmldog", "near it: ANMLDog")])
def test_a_wrong_catid_is_answered_with_near_ones(wrong: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"is no CatID of UCS 8.2; near it: .*{hint.removeprefix('near it: ')}"):
        lookup(wrong)


@settings(deadline=None, max_examples=200)
@given(
    wanted=st.lists(st.tuples(st.sampled_from(["ANMLDog", "RAIN"]), nasty), min_size=1, max_size=20),
    creator=nasty,
    source=nasty,
)
def test_names_are_safe_unique_and_have_four_parts(wanted: list[tuple[str, str]], creator: str, source: str) -> None:
    names = stems(wanted, creator, source)
    assert len({name.casefold() for name in names}) == len(wanted)
    for (catid, _), name in zip(wanted, names, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9 -]+(_[A-Za-z0-9 -]+){3}", name)
        assert name.startswith(f"{catid}_")
        assert name == name.strip()
        assert len(name) < 240
        inside = Path("/library") / folder(catid) / f"{name}.wav"
        assert inside.resolve().is_relative_to("/library")
        assert PureWindowsPath(f"{name}.wav").name == f"{name}.wav"
        assert name.split("_")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


@settings(deadline=None)
@given(nasty)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_numbers_count_within_a_name_and_keep_one_width() -> None:
    names = stems([("ANMLDog", "dog bark")] * 101 + [("ANMLDog", "Dog Bark 01"), ("RAIN", "Dog Bark")], "FRAY", "LIB")
    assert names[0] == "ANMLDog_Dog Bark 001_FRAY_LIB"
    assert names[100] == "ANMLDog_Dog Bark 101_FRAY_LIB"
    assert names[101] == "ANMLDog_Dog Bark 01 01_FRAY_LIB"
    assert names[102] == "RAIN_Dog Bark 01_FRAY_LIB"
