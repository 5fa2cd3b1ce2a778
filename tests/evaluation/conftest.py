from pathlib import Path

import pytest

from foley_ray.config import tiny
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.evaluation.classifier import Classifier, train_classifier
from foley_ray.evaluation.recordings import Recording, read_recordings

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
