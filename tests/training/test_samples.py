from pathlib import Path

import pytest
import torch

from foley_ray.checkpoint import load_part
from foley_ray.config import TASKS
from foley_ray.presets import tiny
from foley_ray.training.samples import ROWS, samples
from foley_ray.training.tasks import TASK_CLASSES

MODEL = tiny().model


def batch(rows: int = ROWS + 2) -> dict:
    wave = torch.randn(rows, MODEL.audio.clip_samples, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) / 4
    return {"wave": wave, "caption": ["rain"] * rows, "class_id": torch.zeros(rows, dtype=torch.int64), "sha256": ["a"] * rows}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_something_to_show_and_is_left_as_it_was(name, tiny_model: Path) -> None:
    torch.manual_seed(0)
    kind = TASK_CLASSES[name]
    task = kind(MODEL, tiny().training[name], {part: load_part(tiny_model, part) for part in kind.needs})
    modes = [module.training for part in task.parts().values() for module in part.modules()]
    weights = {key: value.clone() for part in task.parts().values() for key, value in part.state_dict().items()}
    made = samples(task, batch())
    again = samples(task, batch())
    assert len({sample.name for sample in made}) == len(made) > 0
    for sample, same in zip(made, again, strict=True):
        assert 0 <= sample.picture.min() <= sample.picture.max() <= 1
        assert sample.colours.shape == (*sample.picture.shape, 3)
        assert (sample.picture == same.picture).all(), "a sample that changes by itself cannot be compared between steps"
        if name != "clap":
            assert sample.picture.shape == (MODEL.audio.mel_bands, MODEL.audio.mel_frames(MODEL.audio.clip_samples))
        if sample.wave_T is not None:
            assert sample.wave_T.shape == (MODEL.audio.clip_samples,)
    assert any(sample.wave_T is not None for sample in made) == (name != "clap")
    assert modes == [module.training for part in task.parts().values() for module in part.modules()]
    for part in task.parts().values():
        for key, value in part.state_dict().items():
            assert torch.equal(value, weights[key]), f"{key} moved"
