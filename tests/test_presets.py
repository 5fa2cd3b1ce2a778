import pytest

from foley_ray.config import TASKS, ModelConfig
from foley_ray.errors import ConfigError
from foley_ray.presets import PRESETS, preset, tiny


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_survive_json(name: str) -> None:
    chosen = preset(name)
    assert chosen.name == name
    assert set(chosen.training) == set(TASKS)
    assert ModelConfig.model_validate_json(chosen.model.model_dump_json()) == chosen.model


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'huge'; choose one of: tiny, default, small, large"):
        preset("huge")


def test_tiny_is_under_two_million_parameters(tiny_model) -> None:
    from foley_ray.checkpoint import PARTS, load_part

    parts = [load_part(tiny_model, name) for name in PARTS]
    assert sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad) < 2_000_000
    assert tiny().model.audio.sample_rate_hz == 22_050
