import numpy as np
import pytest

from foley_ray.columns import PROMPT, SEED, ragged, require


def test_require_names_stage_and_columns() -> None:
    with pytest.raises(ValueError, match=r"stage rank needs columns \['seed'\], but the batch has \['prompt'\]"):
        require({"prompt": ["a"]}, (PROMPT, SEED), "rank")
    with pytest.raises(ValueError, match="differing length"):
        require({"prompt": ["a"], "seed": [1, 2]}, (PROMPT, SEED), "rank")
    assert require({"prompt": ["a"], "seed": [1]}, (PROMPT, SEED), "rank") == 1


def test_ragged_keeps_rows_apart_even_when_they_could_be_stacked() -> None:
    column = ragged([np.zeros(3), np.zeros(3)])
    assert column.shape == (2,)
    assert column[1].shape == (3,)
