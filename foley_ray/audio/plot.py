"""Pictures of sound: waveform over log-mel spectrogram, for eyes rather than for measurement."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foley_ray.audio.files import replacing
from foley_ray.audio.mel import LOG_MEL_MAX, LOG_MEL_MIN, LogMel
from foley_ray.spec import AudioSpec


def plot_waves(path: Path, waves: Sequence[np.ndarray], titles: Sequence[str], spec: AudioSpec, columns: int = 4) -> None:
    """One PNG with a waveform and a spectrogram per wave, all on the same colour scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it holds global state and wants a display
    from matplotlib.figure import Figure

    columns = min(columns, len(waves))
    rows = -(-len(waves) // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 2.9 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[1, 2.6] * rows)
    log_mel = LogMel(spec)
    for index, (wave_T, title) in enumerate(zip(waves, titles, strict=True)):
        row, column = divmod(index, columns)
        duration_s = spec.seconds(len(wave_T))
        above = figure.add_subplot(grid[2 * row, column])
        below = figure.add_subplot(grid[2 * row + 1, column], sharex=above)
        above.plot(np.arange(len(wave_T)) / spec.sample_rate_hz, wave_T, linewidth=0.4, color="#1f4e79")
        above.set(ylim=(-1, 1), yticks=[], title=title)
        above.title.set_fontsize(9)
        above.tick_params(labelbottom=False)
        with torch.inference_mode():
            picture_FM = log_mel(torch.from_numpy(np.ascontiguousarray(wave_T, dtype=np.float32))[None])[0].numpy()
        below.imshow(
            picture_FM.T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=LOG_MEL_MIN,
            vmax=LOG_MEL_MAX,
            extent=(0, duration_s, 0, spec.mel_bands),
        )
        below.set(xlim=(0, duration_s), yticks=[])
        below.tick_params(labelsize=7)
        if column == 0:
            below.set_ylabel(f"{spec.mel_bands} mel bands", fontsize=7)
        if row == rows - 1:
            below.set_xlabel("seconds", fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
