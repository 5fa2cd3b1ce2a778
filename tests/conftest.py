"""What most tests share: a quiet single-threaded torch, one local Ray, and a complete tiny model with random weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # machines are noisy: no test depends on how long it takes
settings.load_profile("untimed")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray on this machine with two cores, started once for the whole session."""
    import ray

    from foley_ray.data.cluster import ensure_ray

    ensure_ray(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with every part of the tiny preset, random weights, seeded."""
    import numpy as np
    import torch

    from foley_ray.audio.likeness import COARSE
    from foley_ray.checkpoint import ModelInfo, add_originals, save_model
    from foley_ray.models.clap import Clap
    from foley_ray.models.tuning import Tuning
    from foley_ray.models.unet import build_unet
    from foley_ray.models.vae import build_vae
    from foley_ray.models.vocoder import build_vocoder
    from foley_ray.originals import Originals
    from foley_ray.presets import tiny

    torch.manual_seed(0)
    config = tiny().model
    parts = {
        "clap": Clap(config.clap),
        "tuning": Tuning(config.tuning, config.clap.embed_dim),
        "unet": build_unet(config),
        "vae": build_vae(config),
        "vocoder": build_vocoder(config),
    }
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sounds = {"dog_bark": ("a dog bark", "a dog barking")}
    save_model(folder, ModelInfo(preset="tiny", model=config, latent_scale=0.7, sounds=sounds), parts)
    embedding_ND = np.random.default_rng(0).standard_normal((8, config.clap.embed_dim)).astype(np.float32)
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    limit_N = np.full(8, 0.02, dtype=np.float32)
    frames = config.audio.mel_frames(round(config.clap.window_s * config.audio.sample_rate_hz))
    shape = 8, frames // COARSE, config.audio.mel_bands // COARSE
    silence_NFM = np.zeros(shape, dtype=np.uint8)  # looks like nothing
    add_originals(folder, Originals(embedding_ND, limit_N, silence_NFM, limit_N), "a dataset's digest")
    return folder
