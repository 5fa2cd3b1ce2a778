from pathlib import Path

import pytest
import torch

from foley_ray.checkpoint import load_part, read_info, save_model
from foley_ray.data.cache import run_job as make_cache
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import ConfigError, DatasetError, ModelError
from foley_ray.jobfile import CacheJob, TrainJob
from foley_ray.training.run import Run
from foley_ray.training.setup import describe, open_stream


@pytest.fixture(scope="module")
def dataset(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_recordings(folder / "recordings", count_per_class=3)
    ingest(folder / "recordings", folder / "dataset", sample_rate_hz=22_050)
    return folder / "dataset"


def run(dataset: Path, task: str = "vae", **changes) -> Run:
    return Run.of(TrainJob(**{"task": task, "preset": "tiny", "data": dataset, "out": dataset.parent / "run", **changes}))


def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(dataset: Path, tiny_model: Path) -> None:
    before = sorted(dataset.parent.iterdir())
    text = "\n".join(describe(run(dataset, "finetune", init=(tiny_model,), workers=(1, 2), settings={"lora_rank": 2})))
    assert "model: 0.01 M weights to train, 0.27 M fixed" in text
    assert "given clap: " in text
    assert "GiB for weights, gradients, Adam and the moving average" in text
    assert " rows a worker and step, " in text
    assert sorted(dataset.parent.iterdir()) == before


def test_a_dry_run_finds_what_the_run_would_stumble_over(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs a trained clap"):
        describe(run(dataset, "diffusion"))
    with pytest.raises(DatasetError, match="no dataset at"):
        describe(run(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="task vae has no lora_rank"):
        describe(run(dataset, settings={"lora_rank": 2}))


def test_a_cache_of_an_earlier_ear_is_for_what_learns_from_texts(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    make_cache(CacheJob(preset="tiny", data=dataset, out=tmp_path / "cache", init=(tiny_model,)))
    info, clap = read_info(tiny_model), load_part(tiny_model, "clap")
    with torch.no_grad():
        clap.net.audio_projection[0].bias.add_(0.1)
    earlier = info.parts["clap"].model_copy(update={"stands_for": (info.parts["clap"].digest,)})
    parts = {"clap": clap, **{name: load_part(tiny_model, name) for name in ("vae", "unet", "tuning")}}
    save_model(tmp_path / "other", info.model_copy(update={"parts": {**info.parts, "clap": earlier}}), parts)
    given = {"init": (tmp_path / "other",), "out": tmp_path / "run"}
    assert open_stream(run(tmp_path / "cache", "finetune", **given)).rows_per_epoch > 0
    with pytest.raises(DatasetError, match="computed by another clap than this run is given"):
        open_stream(run(tmp_path / "cache", "diffusion", **given))
