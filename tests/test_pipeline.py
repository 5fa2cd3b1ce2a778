from pathlib import Path

import numpy as np
import pytest

from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.errors import ModelError, PromptError
from foley_ray.originals import Originals
from foley_ray.pipeline import Pipeline

FAST = ClipSettings(duration_s=0.5, steps=3, candidates=2)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(tiny_model)


def test_a_clip_does_not_depend_on_the_company_it_keeps(pipeline: Pipeline) -> None:
    requests = [
        ClipRequest("a dog bark", 7, FAST),
        ClipRequest("rain", 8, FAST.model_copy(update={"steps": 5, "guidance": 1.0})),
        ClipRequest("a dog bark", 9, FAST.model_copy(update={"duration_s": 0.8, "sampler": "ddim", "eta": 1.0})),
    ]
    together = list(pipeline.generate(requests))
    for request, clip in zip(requests, together, strict=True):
        alone = next(pipeline.generate([request]))
        np.testing.assert_allclose(alone.wave_T, clip.wave_T, atol=1e-4)
        assert alone.best.index == clip.best.index
        np.testing.assert_allclose(alone.scores, clip.scores, atol=1e-5)


def test_seeds_and_prompts_matter(pipeline: Pipeline) -> None:
    clips = list(
        pipeline.generate([ClipRequest("rain", 1, FAST), ClipRequest("rain", 2, FAST), ClipRequest("thunder", 1, FAST)])
    )
    assert not np.allclose(clips[0].wave_T, clips[1].wave_T, atol=1e-3)
    assert not np.allclose(clips[0].wave_T, clips[2].wave_T, atol=1e-4)


def test_the_best_of_the_candidates_wins(pipeline: Pipeline) -> None:
    clip = next(pipeline.generate([ClipRequest("rain", 1, FAST.model_copy(update={"candidates": 4}))]))
    assert len(clip.scores) == 4
    assert clip.score == max(clip.scores)


def test_a_threshold_redraws_a_bounded_number_of_times_and_marks_the_rest(pipeline: Pipeline) -> None:
    wish = FAST.model_copy(update={"threshold": 1.0, "max_redraws": 2})
    clip = next(pipeline.generate([ClipRequest("rain", 1, wish)]))
    assert not clip.passed
    assert len(clip.scores) == 3 * 2
    assert clip.score == max(clip.scores)
    # draw k of n candidates has the indices kn to kn + n - 1: six candidates at once are the same six
    six = next(pipeline.generate([ClipRequest("rain", 1, FAST.model_copy(update={"candidates": 6}))]))
    np.testing.assert_allclose(six.scores, clip.scores, atol=1e-5)
    np.testing.assert_allclose(six.wave_T, clip.wave_T, atol=1e-4)


def test_a_threshold_that_is_met_draws_once(pipeline: Pipeline) -> None:
    clip = next(pipeline.generate([ClipRequest("rain", 1, FAST.model_copy(update={"threshold": -1.0}))]))
    assert clip.passed
    assert len(clip.scores) == 2


def test_a_near_copy_gives_way_to_another_candidate_and_is_told_of_where_there_is_none(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = ClipRequest("rain", 1, FAST.model_copy(update={"max_redraws": 1}))
    plain = next(pipeline.generate([wish]))
    assert plain.best.novelty > 1
    embedding_ND = pipeline._draw([(0, wish)], 0, None)["audio_embedding"]

    silence_NFM = pipeline.rank.originals.picture_NFM

    def learned_from(*rows: int) -> None:
        limit_N = np.full(len(rows), 1e-5, dtype=np.float32)
        found = Originals(embedding_ND[list(rows)], limit_N, silence_NFM[: len(rows)], limit_N)
        monkeypatch.setattr(pipeline.rank, "originals", found)

    learned_from(plain.best.index)
    other = next(pipeline.generate([wish]))
    assert [c.index for c in other.candidates] == [1 - plain.best.index, plain.best.index]
    assert other.candidates[1].copied
    assert not [warning for warning in other.warnings if "recording" in warning]
    learned_from(0, 1)
    redrawn = next(pipeline.generate([wish]))
    assert {c.index for c in redrawn.candidates if c.copied} == {0, 1}
    assert redrawn.best.index in (2, 3)
    once = ClipRequest("rain", 1, FAST.model_copy(update={"max_redraws": 0}))
    copied = next(pipeline.generate([once]))
    assert copied.best.index == plain.best.index
    assert "nearly a recording that the model learned from" in copied.warnings[-1]


def test_a_target_replaces_the_text_in_ranking_alone(pipeline: Pipeline) -> None:
    plain = next(pipeline.generate([ClipRequest("rain", 1, FAST)]))
    worst = plain.scores.index(min(plain.scores))
    batch = pipeline._draw([(0, ClipRequest("rain", 1, FAST))], 0, None)
    target = batch["audio_embedding"][worst]
    aimed = next(pipeline.generate([ClipRequest("rain", 1, FAST, target, "that one")]))
    assert aimed.best.index == worst
    assert aimed.score == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(aimed.wave_T, batch["wave"][worst], atol=1e-4)


def test_progress_counts_candidate_steps(pipeline: Pipeline) -> None:
    seen = []
    list(pipeline.generate([ClipRequest("rain", 1, FAST)], lambda done, total: seen.append((done, total))))
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_bad_prompts_are_found_before_anything_is_made(pipeline: Pipeline) -> None:
    with pytest.raises(PromptError, match="a prompt is empty"):
        pipeline.check([ClipRequest("rain", 1, FAST), ClipRequest(" ", 1, FAST)])


def test_a_prompt_is_read_once_however_many_clips_it_has(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    net, read = pipeline.condition.clap.net, []
    encode = net.encode_text

    def counted(tokens_BL, device):  # type: ignore[no-untyped-def]
        read.append(tokens_BL)
        return encode(tokens_BL, device)

    monkeypatch.setattr(net, "encode_text", counted)
    requests = [ClipRequest(prompt, seed, FAST) for prompt in ("hail", "a quantum leap") for seed in range(3)]
    pipeline.check(requests)
    assert len(read) == 2
    pipeline.doubt("hail")  # the first one reads the names of what the model was taught
    read.clear()
    clips = list(pipeline.generate(requests))
    assert len(read) == 3, "two to condition on, one to doubt"
    assert [bool(clip.doubt) for clip in clips] == [True] * 6
    list(pipeline.generate(requests))
    assert len(read) == 5, "doubted already"


def test_an_incomplete_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        Pipeline(tmp_path / "nothing")
