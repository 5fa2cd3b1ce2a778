from pathlib import Path

import matplotlib.image
import numpy as np

from foley_ray.audio.plot import plot_waves
from foley_ray.spec import AudioSpec


def test_the_picture_shows_the_sound(tmp_path: Path) -> None:
    time_s = np.arange(22_050) / 22_050
    low, high = (np.sin(2 * np.pi * f * time_s).astype(np.float32) for f in (200, 5000))
    plot_waves(tmp_path / "p.png", [low, high], ["low", "high"], AudioSpec())
    picture = matplotlib.image.imread(tmp_path / "p.png")[..., :3].mean(axis=2)
    rows, columns = picture.shape
    spectrogram = picture[rows // 2 :]
    # magma: loud is bright; a low tone is bright near the bottom of its half, a high one further up
    left, right = spectrogram[:, columns // 8 : columns * 3 // 8], spectrogram[:, columns * 5 // 8 : columns * 7 // 8]
    inside = slice(5, 100)  # above the axis labels
    assert left[inside].mean(axis=1).argmax() > right[inside].mean(axis=1).argmax()
