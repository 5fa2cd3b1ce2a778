from pathlib import Path

import pytest

from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import ConfigError, DatasetError, ModelError
from foley_ray.jobfile import TrainJob
from foley_ray.training.run import Run
from foley_ray.training.setup import describe


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
