from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.data.captions import drop_words, read_captions, wordings_of
from foley_ray.errors import SourceError


def test_reads_wordings_per_class(tmp_path: Path) -> None:
    file = tmp_path / "captions.yaml"
    file.write_text("rain: [rain, heavy rain]\ndog_bark: [a dog]\n")
    assert read_captions(file) == {"rain": ("rain", "heavy rain"), "dog_bark": ("a dog",)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rain: [", "cannot read"),
        ("- rain", "must hold a mapping"),
        ("rain: wet", "class 'rain'"),
        ("rain: ['']", "class 'rain'"),
        ("rain/serie: [showers]", "'rain/serie' must be rain, rain/series or rain/once"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "captions.yaml"
    file.write_text(content)
    with pytest.raises(SourceError, match=said):
        read_captions(file)


def test_a_list_for_series_is_for_all_of_whom_nobody_knows() -> None:
    captions = {"rain": ("rain",), "rain/series": ("showers",), "rain/once": ("a shower",), "wind": ("wind",)}
    assert wordings_of(captions, "rain") == ("rain", "showers", "a shower")
    assert wordings_of(captions, "rain", "series") == ("rain", "showers")
    assert wordings_of(captions, "rain", "once") == ("rain", "a shower")
    assert wordings_of(captions, "wind", "once") == ("wind",)
    assert wordings_of(captions, "hail") == ()


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=12), st.integers(0, 1000))
def test_dropping_words_keeps_their_order_and_at_least_one(words: list[str], seed: int) -> None:
    kept = drop_words(" ".join(words), 0.5, np.random.default_rng(seed)).split()
    assert kept
    left = iter(words)
    assert all(word in left for word in kept), "a word came from nowhere, or out of order"


def test_words_are_dropped_at_the_share_asked_for() -> None:
    rng = np.random.default_rng(0)
    lengths = [len(drop_words("a dog barks at the door of a house", 0.25, rng).split()) for _ in range(2000)]
    assert np.mean(lengths) == pytest.approx(9 * 0.75, rel=0.03)
