import subprocess
import sys

import pytest
from pydantic import ValidationError

from foley_ray.config import PRESETS, TASKS, ModelConfig, TrainConfig, UNetConfig, VocoderConfig, override, preset, tiny
from foley_ray.errors import ConfigError


def test_light_modules_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys, foley_ray, foley_ray.cli, foley_ray.config, foley_ray.spec, foley_ray.jobfile, foley_ray.columns; "
        "print([name for name in ('torch', 'ray', 'diffusers', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_survive_json(name: str) -> None:
    chosen = preset(name)
    assert chosen.name == name
    assert set(chosen.training) == set(TASKS)
    assert ModelConfig.model_validate_json(chosen.model.model_dump_json()) == chosen.model


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'huge'; choose one of: tiny, default, small, large"):
        preset("huge")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1}, "learning_rate: no such setting$"),
        ({"stpes": 1}, r"stpes: no such setting \(did you mean: steps\?\)"),
        ({"lr": -1}, "lr = -1"),
        ({"steps": "many"}, "steps = 'many'"),
    ],
)
def test_override_says_key_value_and_rule(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(TrainConfig(), changes)


def test_override_keeps_the_rest() -> None:
    assert override(TrainConfig(seed=5), {"lr": 1e-2}) == TrainConfig(seed=5, lr=1e-2)


def test_contradicting_parts_are_refused() -> None:
    with pytest.raises(ValidationError, match="norm_groups"):
        UNetConfig(channels=(20,), norm_groups=8)
    with pytest.raises(ValidationError, match="upsample_rates multiply to 128"):
        ModelConfig(vocoder=VocoderConfig(upsample_rates=(8, 8, 2)))


def test_tiny_is_under_two_million_parameters(tiny_model) -> None:
    from foley_ray.checkpoint import PARTS, load_part

    parts = [load_part(tiny_model, name) for name in PARTS]
    assert sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad) < 2_000_000
    assert tiny().model.audio.sample_rate_hz == 22_050
