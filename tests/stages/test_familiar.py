"""A prompt that the model was never taught is said to be so, and the ones it is judged by are not."""

from pathlib import Path

import pytest

from foley_ray.checkpoint import load_part, read_info, shipped_model
from foley_ray.data.captions import read_captions
from foley_ray.stages.familiar import Familiar

PROMPTS = Path(__file__).parents[2] / "jobs" / "default_model" / "eval_prompts.yaml"


@pytest.fixture(scope="module")
def familiar() -> Familiar:
    model = shipped_model()
    return Familiar(read_info(model).sounds, load_part(model, "clap").text_embed)


def test_of_the_frozen_prompts_hardly_any_is_doubted(familiar: Familiar) -> None:
    prompts = [text for texts in read_captions(PROMPTS).values() for text in texts]
    doubted = [prompt for prompt in prompts if familiar.doubt(prompt)]
    assert len(doubted) <= 5, doubted


@pytest.mark.parametrize("prompt", ["a violin concerto", "quantum teleportation", "jazz", "someone whispering", "ein Hund"])
def test_a_foreign_prompt_is_doubted_by_name_with_the_nearest_known_sounds(familiar: Familiar, prompt: str) -> None:
    doubt = familiar.doubt(prompt)
    assert doubt is not None
    assert repr(prompt) in doubt
    assert "never taught" in doubt
    nearest = doubt.rsplit(": ", 1)[1].split(", ")
    assert len(nearest) == 3
    assert set(nearest) <= set(familiar.names)


@pytest.mark.parametrize("prompt", ["a dog bark", "a rain storm", "a chainsaw", "helicopter hovering", "THUNDER!"])
def test_what_it_was_taught_is_not_doubted(familiar: Familiar, prompt: str) -> None:
    assert familiar.doubt(prompt) is None


def test_a_model_that_does_not_say_what_it_knows_doubts_nothing(familiar: Familiar) -> None:
    assert Familiar({}, familiar._embed).doubt("quantum teleportation") is None
