"""VGGish (arXiv 1609.09430), the network of most published Frechet audio distances, with the weights of its PyTorch port.

Names and shapes are those of harritaylor/torchvggish (vggish-10086976.pth; by torch.hub's convention its SHA-256 begins with
10086976). The embedding is what FAD's own code takes: google-research/frechet_audio_distance over VGGish of tensorflow/models,
which the DCASE 2023 Task 7 evaluation runs nearly unchanged.

- It comes before PCA and quantisation, and before a ReLU (`activation_fn=None` in tensorflow/models). Until 2020 a ReLU
  followed, as it still does in torchvggish; gudgud96/frechet-audio-distance takes it off by default (`use_activation=False`).
- A clip is scaled so that its highest sample is 1, ten times louder at most.
- A patch is the first 0.96 s of a whole window of 1 s, one every 0.5 s. What is left at the end is not heard, and a sound below
  1 s gives no patch: clips here are filled up with zeros first, and those are heard. (torchvggish and gudgud96's package take a
  patch every 0.96 s, and scale nothing.)
- FAD pools the patches of all clips of a set.

The challenge's own numbers are still another matter: its reader drops a file's sample rate, so 22,050 Hz, unless resampled
before, are heard as 16,000. Held to names, shapes and an independent front end here, never to the published weights.
Shapes: B clips, T samples, F frames of 10 ms, M = 64 mel bands, P patches of 96 frames, D = 128.
"""

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from foley_ray.interchange.weights import State, fill

WINDOW, HOP, FFT = 400, 160, 512
BANDS = 64
LOG_OFFSET = 0.01
PATCH_FRAMES, PATCH_HOP_FRAMES = 96, 50
WINDOW_SAMPLES, WINDOW_HOP_SAMPLES = 16000, 8000
"""FAD's code cuts windows of 1 s, of which a patch leaves the last 40 ms out."""
MIN_PEAK = 0.1
CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
MAX_PATCHES = 32


class Vggish(nn.Module):
    """Clips at 16 kHz -> several embeddings a clip. Raises ModelError if the weights are not VGGish's, naming what differs."""

    sample_rate_hz = 16000
    least_s = 1.0
    about = (
        "VGGish at 16 kHz, 128 values before the last ReLU, a patch of 0.96 s every 0.5 s; FAD pools patches, "
        "all else takes each clip's mean"
    )

    def __init__(self, state: State, what: str):
        super().__init__()
        self.features = nn.Sequential(*_layers())
        # torchvggish's last layer, 5, is a ReLU and has no weights
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )
        fill(self, state, what)
        mel_KM = mel_filter_bank(
            FFT // 2 + 1, BANDS, 125.0, 7500.0, self.sample_rate_hz, mel_scale="htk", triangularize_in_mel_space=True
        )
        self.mel_KM = torch.from_numpy(mel_KM).float()

    def log_mel(self, wave_BT: Tensor) -> Tensor:
        """(B, F, M) log(mel magnitude + 0.01): Hann windows of 25 ms every 10 ms, none reaching over the edges."""
        frame_BFW = wave_BT.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW)
        return torch.log(torch.fft.rfft(frame_BFW, FFT).abs() @ self.mel_KM + LOG_OFFSET)

    def patches(self, wave_BT: Tensor) -> Tensor:
        """(B, P, 96, M) of the clips, scaled as FAD's code does."""
        wave_BT = wave_BT / wave_BT.amax(dim=1, keepdim=True).clamp(min=MIN_PEAK)
        count = (wave_BT.shape[1] - WINDOW_SAMPLES) // WINDOW_HOP_SAMPLES + 1
        return self.log_mel(wave_BT).unfold(1, PATCH_FRAMES, PATCH_HOP_FRAMES)[:, :count].transpose(2, 3)

    def forward(self, patch_NFM: Tensor) -> Tensor:
        """(N, D) of patches (N, 96, M)."""
        feature_NCFM = self.features(patch_NFM[:, None])
        return torch.as_tensor(
            self.embeddings(feature_NCFM.permute(0, 2, 3, 1).flatten(1))
        )  # TensorFlow's order: channels last

    @torch.inference_mode()
    def sounds(self, wave_BT: np.ndarray) -> np.ndarray:
        """(B, P, D) of clips of one length, 1 s or more."""
        patch_BPFM = self.patches(torch.from_numpy(wave_BT))
        embedded_ND = torch.cat([self(part_NFM) for part_NFM in patch_BPFM.flatten(0, 1).split(MAX_PATCHES)])
        return embedded_ND.reshape(*patch_BPFM.shape[:2], -1).numpy()


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 1
    for channels in CHANNELS:
        if isinstance(channels, int):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        else:
            layers.append(nn.MaxPool2d(2))
    return layers
