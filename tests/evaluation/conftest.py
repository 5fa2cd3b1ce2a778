from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.evaluation.classifier import Classifier, train_classifier
from foley_ray.evaluation.recordings import Recording, read_recordings
from foley_ray.presets import tiny

State = dict[str, torch.Tensor]
SPEC = tiny().model.audio
JUDGED = ("dog_bark", "gunshot", "rain")


@pytest.fixture(scope="session")
def judged_dataset(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of ten procedural recordings, two of each held out."""
    folder = tmp_path_factory.mktemp("judged")
    write_recordings(folder / "recordings", count_per_class=10)
    ingest(folder / "recordings", folder / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    return folder / "dataset"


@pytest.fixture(scope="session")
def recordings(judged_dataset: Path) -> list[Recording]:
    return read_recordings(judged_dataset, SPEC)


@pytest.fixture(scope="session")
def judge(recordings: list[Recording]) -> Classifier:
    return train_classifier(recordings, SPEC, JUDGED, "some digest", copies=1, epochs=60, progress=lambda line: None)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Random weights over few numbers, w[i, j, ...] = v[i + j + ...], so that files of 70 M weights stay small."""
    generator = torch.Generator().manual_seed(seed)
    fan_in = int(np.prod(shape[1:])) or 1
    return (torch.randn(sum(shape), generator=generator) * (2 / fan_in) ** 0.5).as_strided(shape, (1,) * len(shape))


@pytest.fixture(scope="session")
def vggish_state() -> State:
    """Names and shapes of torchvggish's vggish-10086976.pth."""
    convs = {0: (1, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512), 13: (512, 512)}
    shapes = {f"features.{index}": (after, before, 3, 3) for index, (before, after) in convs.items()}
    shapes |= {"embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096), "embeddings.4": (128, 4096)}
    state: State = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        state |= {f"{name}.weight": drawn(seed, *shape), f"{name}.bias": 0.1 * drawn(100 + seed, shape[0])}
    return state


@pytest.fixture(scope="session")
def cnn14_states() -> dict[int, State]:
    """By rate in Hz, names and shapes of Cnn14_mAP=0.431.pth and Cnn14_16k_mAP=0.438.pth, their "model"."""
    state: State = {}
    norms = {"bn0": 64}
    widths = (1, 64, 128, 256, 512, 1024, 2048)
    for block in range(1, 7):
        before, after = widths[block - 1 : block + 1]
        state[f"conv_block{block}.conv1.weight"] = drawn(block, after, before, 3, 3)
        state[f"conv_block{block}.conv2.weight"] = drawn(10 + block, after, after, 3, 3)
        norms |= {f"conv_block{block}.bn1": after, f"conv_block{block}.bn2": after}
    for seed, (name, width) in enumerate(norms.items()):
        state |= {
            f"{name}.weight": 1 + 0.1 * drawn(seed, width).clamp(-2, 2),
            f"{name}.bias": 0.1 * drawn(20 + seed, width),
            f"{name}.running_mean": 0.1 * drawn(40 + seed, width),
            f"{name}.running_var": 1 + 0.1 * drawn(60 + seed, width).abs(),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }
    for name, width in (("fc1", 2048), ("fc_audioset", 527)):
        state |= {f"{name}.weight": drawn(80, width, 2048), f"{name}.bias": 0.1 * drawn(81, width)}
    found = {}
    for rate_hz, window, fmax_hz in ((32000, 1024, 14000), (16000, 512, 8000)):
        turn = 2 * np.pi / window * np.outer(np.arange(window // 2 + 1), np.arange(window))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi / window * np.arange(window))
        mel = librosa.filters.mel(sr=rate_hz, n_fft=window, n_mels=64, fmin=50, fmax=fmax_hz).T
        found[rate_hz] = {
            "spectrogram_extractor.stft.conv_real.weight": torch.tensor(np.cos(turn) * hann, dtype=torch.float32)[:, None],
            "spectrogram_extractor.stft.conv_imag.weight": torch.tensor(-np.sin(turn) * hann, dtype=torch.float32)[:, None],
            "logmel_extractor.melW": torch.tensor(mel, dtype=torch.float32),
            **state,
        }
    return found


@pytest.fixture(scope="session")
def published_weights(vggish_state: State, cnn14_states: dict[int, State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vggish.pth, and panns.pth as the 16 kHz checkpoint is: with the state of its training's sampler."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(vggish_state, folder / "vggish.pth")
    sampler = {"indexes_per_class": [np.arange(4)], "queue": [], "pointers_of_classes": [0]}
    torch.save({"iteration": 600000, "model": cnn14_states[16000], "sampler": sampler}, folder / "panns.pth")
    return folder
