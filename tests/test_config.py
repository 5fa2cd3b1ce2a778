import subprocess
import sys

import pytest
from pydantic import ValidationError

from foley_ray.config import ModelConfig, TrainConfig, UNetConfig, VocoderConfig, override
from foley_ray.errors import ConfigError


def test_light_modules_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys, foley_ray, foley_ray.cli, foley_ray.presets, foley_ray.spec, foley_ray.jobfile, foley_ray.columns; "
        "print([name for name in ('torch', 'ray', 'diffusers', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


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
