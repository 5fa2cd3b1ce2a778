"""What a request that says little becomes, under limits that are below the product's own defaults."""

from pathlib import Path

import pytest

from foley_ray.checkpoint import read_info
from foley_ray.serving.generation import Generation
from foley_ray.serving.schemas import BadRequest, GenerateBody
from foley_ray.serving.settings import Limits

NARROW = Limits(candidates=2, steps=10, redraws=1)


def test_what_was_not_asked_for_is_within_the_limits_and_what_was_is_refused() -> None:
    body = GenerateBody.model_validate({"prompt": "rain", "guidance": 3.0})
    body.check(NARROW)
    made = body.settings(NARROW)
    assert (made.candidates, made.steps, made.max_redraws, made.guidance) == (2, 10, 1, 3.0)
    made = body.settings(Limits())
    assert (made.candidates, made.steps, made.max_redraws) == (3, 20, 3)
    for name, value in {"candidates": 3, "steps": 20, "max_redraws": 3}.items():
        asked = GenerateBody.model_validate({"prompt": "rain", name: value})
        with pytest.raises(BadRequest, match=f"{name} {value} is more than"):
            asked.check(NARROW)


def test_the_defaults_that_the_service_tells_are_those_it_uses(tiny_model: Path) -> None:
    generation = Generation(None, read_info(tiny_model), NARROW)  # type: ignore[arg-type]  # nothing is made
    told = generation.about().defaults
    assert told == GenerateBody.model_validate({"prompt": "rain", "duration_s": told.duration_s}).settings(NARROW)
    GenerateBody.model_validate({"prompt": "rain", **told.model_dump()}).check(NARROW)
