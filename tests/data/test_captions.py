from pathlib import Path

import pytest

from foley_ray.data.captions import read_captions
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
    ],
)
def test_says_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "captions.yaml"
    file.write_text(content)
    with pytest.raises(SourceError, match=said):
        read_captions(file)
