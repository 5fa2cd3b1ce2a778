import pytest
import torch

from foley_ray.diffusion.windows import blend, count_windows, cover


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(("width", "window"), [(20, 20), (21, 20), (37, 20), (100, 20), (7, 20), (646, 216)])
def test_every_frame_is_covered_and_blending_equal_windows_changes_nothing(width: int, window: int, loop: bool) -> None:
    latent = torch.randn(2, width, 3, generator=torch.Generator().manual_seed(width))
    for step in range(5):
        frames = cover(width, window, loop, step)
        assert {int(frame) for index in frames for frame in index} == set(range(width))
        assert all(len(index) == min(width, window) for index in frames)
        assert len(frames) == count_windows(width, window, loop)
        torch.testing.assert_close(blend([latent[:, index] for index in frames], frames, width), latent)


def test_one_window_fades_into_the_next_without_a_jump() -> None:
    frames = cover(35, 20, False, 0)
    assert [index.tolist()[0] for index in frames] == [0, 15]
    blended = blend([torch.zeros(1, 20, 1), torch.ones(1, 20, 1)], frames, 35)[0, :, 0]
    assert blended[:15].tolist() == [0.0] * 15
    assert blended[20:].tolist() == [1.0] * 15
    assert (blended.diff() >= 0).all()
    assert blended.diff().max() < 0.3


def test_thirty_seconds_are_four_windows_of_ten() -> None:
    assert count_windows(646, 216, loop=False) == 4


def test_a_loop_begins_somewhere_else_at_every_step() -> None:
    starts = [int(cover(86, 86, True, step)[0][0]) for step in range(8)]
    assert len(set(starts)) == 8
    assert min(min(abs(a - b), 86 - abs(a - b)) for i, a in enumerate(starts) for b in starts[:i]) >= 5
