import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.data.sources.licences import licence_of


@pytest.mark.parametrize(
    ("text", "name", "shippable"),
    [
        # Freesound's API, FSD50K's clips_info, Clotho's metadata: deed URLs
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0", True),
        ("http://creativecommons.org/licenses/by/3.0/", "CC BY 3.0", True),
        ("https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0", True),
        ("http://creativecommons.org/licenses/by-nc/3.0/", "CC BY-NC 3.0", False),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "CC BY-NC 4.0", False),
        ("http://creativecommons.org/licenses/sampling+/1.0/", "CC Sampling+ 1.0", False),
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC BY-SA 4.0", False),
        ("https://creativecommons.org/licenses/by/3.0/us/", "CC BY 3.0", True),
        ("https://creativecommons.org/licenses/by/4.0/legalcode", "CC BY 4.0", True),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "Public Domain", True),
        # Freesound's packs and pages: names
        ("Creative Commons 0", "CC0 1.0", True),
        ("Attribution", "CC BY", True),
        ("Attribution 4.0", "CC BY 4.0", True),
        ("Attribution Noncommercial", "CC BY-NC", False),
        ("Attribution NonCommercial 4.0", "CC BY-NC 4.0", False),
        ("Sampling+", "CC Sampling+ 1.0", False),
        # people
        ("CC BY 3.0", "CC BY 3.0", True),
        ("cc-by-4.0", "CC BY 4.0", True),
        ("cc0-1.0", "CC0 1.0", True),
        ("MIT", "MIT", True),
        ("CC BY-NC 3.0", "CC BY-NC 3.0", False),
        ("Creative Commons Attribution 4.0 International", "CC BY 4.0", True),
        # not understood, so nothing is allowed
        ("", "", None),
        ("CC BY 3.0 + CC BY-SA 3.0", "CC BY 3.0 + CC BY-SA 3.0", None),
        ("not CC0", "not CC0", None),
        ("see Attribution", "see Attribution", None),
        ("CC BY NC", "CC BY NC", None),
        *((text, text, None) for text in (
            "https://evil.example/creativecommons.org/licenses/by/4.0/",
            "https://creativecommons.org/licenses/by/4.0/../by-nc/4.0/",
        )),
    ],
)  # fmt: skip
def test_statements(text, name, shippable):
    assert licence_of(text) == (name, shippable)
    assert licence_of(f"  {text.upper()}\n").shippable == shippable


@settings(deadline=None)
@given(st.text(alphabet="ccbyncsand-0134. +") | st.text())
def test_nothing_non_commercial_is_ever_allowed(text):
    licence = licence_of(f"{text}nc")
    assert not licence.shippable
    assert licence_of(licence_of(text).name) == licence_of(text)  # a short name means itself
