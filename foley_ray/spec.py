"""AudioSpec: the one home of length arithmetic, from seconds to samples, mel frames and latent frames.

Knows no tensors. Everything that asks "how long is this in ..." asks here.
"""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_DURATION_S = 0.5
MAX_DURATION_S = 30.0
WINDOW_S = 10.0
"""What the network sees at once of a longer clip, in overlapping windows."""


class AudioSpec(BaseModel):
    """How sound is measured by one model: sample rate, mel analysis, and how far the VAE shrinks the mel.

    The defaults are LDM-S of arXiv 2306.10359 (22.05 kHz, 80 mels, hop 256, a latent of 8 channels at 1/4 of the mel in
    time and frequency): 4 s are 88,200 samples, 344 mel frames, a latent of 8 x 86 x 20.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: int = Field(22050, ge=8000, le=192000)
    n_fft: int = Field(1024, ge=64)
    win_samples: int = Field(1024, ge=64)
    hop_samples: int = Field(256, ge=16)
    mel_bands: int = Field(80, ge=8)
    fmin_hz: float = Field(0.0, ge=0)
    fmax_hz: float = Field(8000.0, gt=0)
    clip_s: float = Field(4.0, gt=0, description="length of a training crop, and of a clip unless asked otherwise")
    latent_channels: int = Field(8, ge=1)
    latent_factor: int = Field(4, ge=1, description="mel frames (and mel bands) per latent step")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fmax_hz > self.sample_rate_hz / 2:
            raise ValueError(f"fmax_hz {self.fmax_hz:g} is above half the sample rate {self.sample_rate_hz}")
        if self.win_samples > self.n_fft:
            raise ValueError(f"win_samples {self.win_samples} is above n_fft {self.n_fft}")
        if self.mel_bands % self.latent_factor:
            raise ValueError(f"mel_bands {self.mel_bands} is not a multiple of latent_factor {self.latent_factor}")
        return self

    @property
    def latent_bands(self) -> int:
        """Height of the latent: 80 mels / 4 = 20."""
        return self.mel_bands // self.latent_factor

    @property
    def latent_samples(self) -> int:
        """Samples behind one latent frame: 256 * 4 = 1024."""
        return self.hop_samples * self.latent_factor

    @property
    def clip_samples(self) -> int:
        """Samples of a training crop, cut to whole latent frames: 4 s = 86 * 1024 = 88,064."""
        return self.latent_frames(self.clip_s) * self.latent_samples

    def samples(self, duration_s: float) -> int:
        """Samples of a clip of that many seconds, rounded to the nearest."""
        return round(duration_s * self.sample_rate_hz)

    def seconds(self, samples: int) -> float:
        """Duration of that many samples."""
        return samples / self.sample_rate_hz

    def mel_frames(self, samples: int) -> int:
        """Mel frames of that many samples: the transform is padded so that each whole hop gives one frame."""
        return samples // self.hop_samples

    def latent_frames(self, duration_s: float) -> int:
        """Latent frames to generate for a clip: rounded up, but a rest shorter than one hop is not worth a frame.

        4 s at 22,050 Hz end 136 samples after latent frame 86; those 6 ms are filled with silence, as the paper's system
        does, so that the published latent sizes (86 and, at 16 kHz, 100) come out.
        """
        return max(1, math.ceil((self.samples(duration_s) - self.hop_samples + 1) / self.latent_samples))

    def loop_samples(self, duration_s: float) -> int:
        """Samples of a clip whose end leads into its beginning: whole latent frames, for 4 s 88,064."""
        return self.latent_frames(duration_s) * self.latent_samples

    def latent_shape(self, duration_s: float) -> tuple[int, int, int]:
        """(channels, latent frames, latent bands), the paper's order: (8, 86, 20) for 4 s."""
        return (self.latent_channels, self.latent_frames(duration_s), self.latent_bands)
