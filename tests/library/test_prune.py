"""Forgetting candidates that no plan refers to any more."""

from pathlib import Path

import numpy as np
import pytest
from sounds import save, tone
from typer.testing import CliRunner

from foley_ray.checkpoint import read_info
from foley_ray.cli import app
from foley_ray.errors import ConfigError, DataError, OutputError
from foley_ray.library.plan import expand, load_plan
from foley_ray.library.prune import prune
from foley_ray.library.store import Store

PLAN = """\
library: Small
creator: FRAY
source: SMALL
date: 2026-11-20
categories:
  - {catid: RAIN, name: Rain, prompts: [PROMPT], seeds: 2, targets: drops}
"""


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    """A library that has stored two draws of each clip of two plans, and a delivered file."""
    for index in range(2):
        save(tmp_path / "drops" / f"{index}.wav", tone(hz=100 + index))
    store = Store(tmp_path / "library")
    with store.locked():
        for name in ("rain", "hail"):
            (tmp_path / f"{name}.yaml").write_text(PLAN.replace("PROMPT", name))
            for clip in expand(load_plan(tmp_path / f"{name}.yaml"), read_info(tiny_model).digest):
                for draw in range(2):
                    wave_T = np.full(100, 0.1, dtype=np.float32)
                    row = {
                        "candidate": [draw],
                        "score": [0.1],
                        "audio_embedding": [np.ones(2)],
                        "novelty": [2.0],
                        "wave": [wave_T],
                    }
                    store.save_draw(clip.id, draw, row)
        store.save_embedding("clap-0123", np.ones(2))
        store.put(store.library / "Rain" / "RAIN_Rain 01.wav", b"RIFF")
    return tmp_path


def test_what_no_plan_has_goes_and_the_rest_stays(place: Path, tiny_model: Path) -> None:
    library = place / "library"
    words = ["library", "prune", f"{place}/rain.yaml", "--out", str(library), "--model", str(tiny_model)]
    store, before = Store(library), sum(path.stat().st_size for path in library.rglob("*") if path.is_file())
    told = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False).output
    assert "5 files, 0.0 MB would go" in told
    assert prune([place / "rain.yaml", place / "hail.yaml"], library, tiny_model) == (1, 144)  # a sound that is no target now
    files, size = prune([place / "rain.yaml"], library, tiny_model)
    assert files == 4
    assert before - 144 - size == sum(path.stat().st_size for path in library.rglob("*") if path.is_file())
    kept = {clip.id for clip in expand(load_plan(place / "rain.yaml"), read_info(tiny_model).digest)}
    assert store.draws() == dict.fromkeys(kept, 2)
    assert (library / "Rain" / "RAIN_Rain 01.wav").exists()


def test_it_is_refused_while_a_run_builds_and_for_plans_of_another_library(place: Path, tiny_model: Path) -> None:
    library, stored = place / "library", sorted((place / "library").rglob("*.npz"))
    with Store(library).locked(), pytest.raises(OutputError, match="another run is building"):
        prune([place / "rain.yaml"], library, tiny_model)
    (place / "snow.yaml").write_text(PLAN.replace("PROMPT", "snow"))
    with pytest.raises(ConfigError, match=r"none of the 4 clips stored in .*library is of these plans"):
        prune([place / "snow.yaml"], library, tiny_model)
    with pytest.raises(DataError, match="no library at"):
        prune([place / "rain.yaml"], place / "drops", tiny_model)
    assert sorted(library.rglob("*.npz")) == stored
    assert not (place / "drops/.foley").exists()
