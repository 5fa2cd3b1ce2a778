"""The model that ships: there, small enough, free to use, and it makes a sound."""

from pathlib import Path

import numpy as np

from foley_ray.checkpoint import PARTS, part_digest, read_info, read_originals, shipped_model
from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.pipeline import Pipeline


def test_every_part_is_there_whole_and_from_recordings_that_may_be_given_away() -> None:
    folder = shipped_model()
    info = read_info(folder, needs=PARTS)
    for name, part in info.parts.items():
        assert part_digest(folder / name) == part.digest, f"the weights of {name} are not those that foley.json names"
        assert part.training["shippable_only"], f"{name} was trained on recordings that do not allow it"
    assert info.originals is not None, "it would not know a copy: foley originals"
    assert read_originals(folder, info) is not None
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert "CC BY" in attribution
    assert (folder / "README.md").is_file()


def test_it_fits_into_a_package() -> None:
    sizes = {path: path.stat().st_size for path in Path(shipped_model()).rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 15e6
    assert sum(sizes.values()) <= 60e6


def test_it_makes_a_sound() -> None:
    pipeline = Pipeline(shipped_model())
    settings = ClipSettings(candidates=1, steps=5, duration_s=1.0)
    rain, bark = pipeline.generate([ClipRequest(text, 1, settings) for text in ("heavy rain", "a dog bark")])
    for clip in (rain, bark):
        assert np.isfinite(clip.wave_T).all()
        assert np.abs(clip.wave_T).max() > 0.01, "silence"
    frames = [np.square(clip.wave_T[:20480].reshape(20, -1)).mean(axis=1) for clip in (rain, bark)]
    evenness = [frame_N.min() / frame_N.max() for frame_N in frames]
    assert evenness[0] > evenness[1], "rain goes on, a bark does not"
