"""Every metric against a closed form, and against a second, slow way to compute it."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from foley_ray.evaluation.metrics import (
    bootstrap,
    clap_scores,
    density_coverage,
    density_coverage_intervals,
    diversity,
    diversity_interval,
    fad,
    fad_inf,
    fad_interval,
    frechet_distance,
    gaussian,
    kad,
    nearest,
    share,
)


def normal(seed: int, n: int, d: int = 6, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


def test_frechet_distance_of_known_gaussians() -> None:
    # diagonal: |m|^2 + sum (sqrt a - sqrt b)^2 = 4 * 0.25 + 4 * (3 - 2)^2
    assert frechet_distance(np.zeros(4), 9 * np.eye(4), np.full(4, 0.5), 4 * np.eye(4)) == pytest.approx(5.0)
    assert frechet_distance(np.zeros(4), np.eye(4), np.zeros(4), np.eye(4)) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_agrees_with_the_matrix_root() -> None:
    a, b = gaussian(normal(0, 50) @ normal(1, 6)), gaussian(normal(2, 40, shift=1) @ normal(3, 6))
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * np.real(sqrtm(a[1] @ b[1])))
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_singular_covariances() -> None:
    few, others = normal(0, 4, d=30), normal(1, 5, d=30, shift=0.2)
    offset = 1e-10 * np.eye(30)  # what the usual implementations add
    a, b = gaussian(few), gaussian(others)
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * np.real(sqrtm((a[1] + offset) @ (b[1] + offset))))
    assert fad(few, others) == pytest.approx(expected, rel=1e-3)


def test_patches_of_all_clips_are_pooled_and_clips_are_what_is_drawn() -> None:
    a_NPD, b_MPD = normal(0, 30).reshape(10, 3, 6), normal(1, 24, shift=1).reshape(8, 3, 6)
    assert fad(a_NPD, b_MPD) == pytest.approx(fad(a_NPD.reshape(30, 6), b_MPD.reshape(24, 6)), rel=1e-12)
    of_clips, of_patches = fad_interval(a_NPD, b_MPD), fad_interval(a_NPD.reshape(30, 6), b_MPD.reshape(24, 6))
    assert of_clips.value == pytest.approx(of_patches.value, rel=1e-12)
    copies_NPD, others_MPD = (np.repeat(x[:, :1], 3, axis=1) for x in (a_NPD, b_MPD))  # patches that say nothing new
    pooled = (x.reshape(-1, 6) for x in (copies_NPD, others_MPD))
    whole, each = fad_interval(copies_NPD, others_MPD), fad_interval(*pooled)
    assert whole.high - whole.low > 1.3 * (each.high - each.low)
    assert fad_inf(a_NPD, b_MPD[::-1]) == pytest.approx(fad_inf(a_NPD, b_MPD), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 40), (40, 5), (6, 6), (40, 40)])
def test_fad_of_few_clips_is_that_of_their_gaussians(n: int, m: int) -> None:
    a, b = normal(0, n, d=12), normal(1, m, d=12, shift=0.3)
    assert fad(a, b) == pytest.approx(frechet_distance(*gaussian(a), *gaussian(b)), rel=1e-6)


def test_a_set_is_at_distance_0_from_itself() -> None:
    features = normal(0, 40)
    assert fad(features, features) == pytest.approx(0, abs=1e-9)
    assert diversity(np.repeat(features[:1], 5, axis=0)) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(nearest(features, features)[0], 0, atol=1e-12)
    np.testing.assert_array_equal(nearest(features, features)[1], np.arange(40))
    np.testing.assert_allclose(clap_scores(features, 3 * features), 1)
    assert density_coverage(features, features, 3)[1] == 1


def test_fad_is_biased_upwards_and_fad_inf_much_less() -> None:
    """The true distance of the two is 8 * 0.5^2 = 2."""
    reference = normal(0, 20_000, d=8)
    plain, extrapolated = zip(
        *((fad(reference, x), fad_inf(reference, x)) for x in (normal(seed, 60, d=8, shift=0.5) for seed in range(1, 21))),
        strict=True,
    )
    assert np.mean(plain) > 2.15
    assert abs(np.mean(extrapolated) - 2) < abs(np.mean(plain) - 2) / 2


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 40), (30, 50, 4)])
def test_fad_interval_is_around_fad_and_quick_where_clips_are_few(n: int, m: int, d: int) -> None:
    x, y = normal(0, n, d=d), normal(1, m, d=d, shift=0.5, scale=1.5)
    found = fad_interval(x, y, draws=50)
    assert found.value == pytest.approx(fad(x, y), rel=1e-9)
    assert found.low < found.value < found.high
    rng = np.random.default_rng(0)
    drawn = [fad(x[rng.integers(n, size=n)], y[rng.integers(m, size=m)]) for _ in range(50)]  # the slow way, the same draws
    low, high = np.percentile(np.array(drawn) - np.mean(drawn) + found.value, [2.5, 97.5])
    assert found[1:] == pytest.approx((max(0, low), high), rel=1e-6)


def test_fad_interval_covers_what_fad_is_at_this_number_of_clips() -> None:
    sets = [(normal(2 * i, 40, d=4), normal(2 * i + 1, 40, d=4, shift=0.8)) for i in range(60)]
    expected = np.mean([fad(x, y) for x, y in sets])
    assert expected > 4 * 0.8**2  # the truth, below which the bias never lets the mean fall
    intervals = [fad_interval(x, y, draws=100) for x, y in sets]
    assert np.mean([low <= expected <= high for _, low, high in intervals]) > 0.85


def slow_kad(x: np.ndarray, y: np.ndarray) -> float:
    width = np.median([np.linalg.norm(a - b) for a, b in combinations(x, 2)])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * width**2)))

    within = [np.mean([kernel(a, b) for a, b in combinations(z, 2)]) for z in (x, y)]
    return float(100 * (sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])))


def test_kad_agrees_with_loops_and_its_interval_holds_it() -> None:
    x, y = normal(0, 15), normal(1, 11, shift=0.7)
    found = kad(x, y)
    assert found.value == pytest.approx(slow_kad(x, y))
    assert found.low < found.value < found.high


def test_kad_of_known_gaussians() -> None:
    """For N(0, 1) and N(m, 1) in one dimension and kernel width w, MMD^2 = 2 w / s (1 - exp(-m^2 / 2 s^2)), s^2 = w^2 + 2."""
    m, w = 1.5, 0.8
    s = np.sqrt(w**2 + 2)
    expected = 100 * 2 * w / s * (1 - np.exp(-(m**2) / (2 * s**2)))
    values = [kad(normal(2 * i, 300, d=1), normal(2 * i + 1, 300, d=1, shift=m), w, draws=0).value for i in range(60)]
    assert np.mean(values) == pytest.approx(expected, rel=0.03)


def test_kad_of_one_distribution_is_0_on_average_even_for_few_clips() -> None:
    values = [kad(normal(2 * seed, 8), normal(2 * seed + 1, 6), draws=0).value for seed in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert min(values) < 0


def test_kad_interval_covers_the_truth() -> None:
    """Of one distribution against itself the truth is 0; a bootstrap that counted copies as pairs would lie above it."""
    intervals = [kad(normal(2 * seed, 30), normal(2 * seed + 1, 30), draws=200) for seed in range(60)]
    assert np.mean([low <= 0 <= high for _, low, high in intervals]) > 0.85


def test_density_and_coverage_agree_with_loops() -> None:
    x, y, k = normal(0, 20, d=3), normal(1, 14, d=3, shift=0.4), 4
    radius = [sorted(np.linalg.norm(a - b) for b in x)[k] for a in x]  # [0] is the clip itself
    inside = [[np.linalg.norm(a - b) < r for b in y] for a, r in zip(x, radius, strict=True)]
    density, coverage = density_coverage(x, y, k)
    assert density == pytest.approx(np.sum(inside) / (k * len(y)))
    assert coverage == pytest.approx(np.mean([any(row) for row in inside]))


def test_density_and_coverage_intervals_hold_their_values() -> None:
    x, y = normal(0, 60, d=3), normal(1, 50, d=3, shift=0.4)
    density, coverage = density_coverage_intervals(x, y)
    assert (density.value, coverage.value) == pytest.approx(density_coverage(x, y))
    for value, low, high in (density, coverage):
        assert low < value < high


def test_density_is_1_for_one_distribution_and_0_far_away() -> None:
    assert density_coverage(normal(0, 500, d=3), normal(1, 500, d=3))[0] == pytest.approx(1, abs=0.1)
    assert density_coverage(normal(0, 50), normal(1, 50, shift=100)) == (0, 0)


def test_diversity_agrees_with_loops() -> None:
    x = normal(0, 9)
    pairs = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(x, 2)]
    assert diversity(x) == pytest.approx(np.mean(pairs))
    assert diversity(np.eye(5)) == pytest.approx(1)


def test_diversity_interval_does_not_count_copies() -> None:
    x = normal(0, 12)
    found = diversity_interval(x)
    assert found.value == diversity(x)
    assert found.low < found.value < found.high
    assert diversity_interval(np.eye(6)) == pytest.approx((1, 1, 1))  # copies as pairs would pull it down
    truth = np.mean([diversity(normal(seed, 30)) for seed in range(40)])
    covered = [low <= truth <= high for _, low, high in (diversity_interval(normal(seed, 30), draws=200) for seed in range(40))]
    assert np.mean(covered) > 0.85


def test_nearest_agrees_with_loops() -> None:
    x, y = normal(0, 7), normal(1, 9)
    distance, index = nearest(x, y, "euclidean")
    for query, far, which in zip(x, distance, index, strict=True):
        assert far == pytest.approx(min(np.linalg.norm(query - other) for other in y))
        assert far == pytest.approx(np.linalg.norm(query - y[which]))


@pytest.mark.parametrize(
    "metric",
    [
        fad,
        fad_inf,
        lambda x, y: kad(x, y, draws=0).value,
        lambda x, y: density_coverage(x, y)[0],
        lambda x, y: density_coverage(x, y)[1],
        lambda x, y: diversity(x),
        lambda x, y: float(nearest(x, y)[0].sum()),
    ],
)
def test_the_order_of_clips_does_not_matter(metric: Callable[[np.ndarray, np.ndarray], float]) -> None:
    x, y = normal(0, 20), normal(1, 25, shift=0.3)
    rng = np.random.default_rng(2)
    assert metric(rng.permutation(x), rng.permutation(y)) == pytest.approx(metric(x, y), rel=1e-9)


def test_bootstrap_interval_of_a_mean_is_that_of_theory() -> None:
    found = bootstrap(np.mean, normal(0, 400, d=1)[:, 0])
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
    ratio = bootstrap(lambda a, b: a.mean() / b.mean(), np.array([1, 1, 0, 1.0]), np.array([1, 1, 1, 1.0]))
    assert ratio.value == 0.75
    assert ratio.low < 0.75 < ratio.high <= 1


def test_wilson_interval() -> None:
    found = share(8, 10)  # textbook: 0.490 to 0.943
    assert found == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-3)
    assert share(0, 10).low == 0
    assert share(0, 10).high == pytest.approx(0.2775, abs=1e-3)
    assert share(3, 3).low == pytest.approx(0.4385, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: gaussian(normal(0, 1)), "at least 2 clips, not 1"),
        (lambda: kad(normal(0, 9), normal(1, 1)), "at least 2 clips on each side, not 9 and 1"),
        (lambda: kad(np.ones((9, 3)), normal(1, 4, d=3)), "equal"),
        (lambda: density_coverage(normal(0, 5), normal(1, 5)), "more than 5 reference clips"),
        (lambda: diversity(normal(0, 1)), "at least 2"),
        (lambda: share(3, 0), "no share of 3 in 0"),
    ],
)
def test_too_few_clips_are_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()
