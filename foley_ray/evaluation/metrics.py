"""Distances and scores between sets of embeddings: plain arrays in, numbers out, float64 inside.

Knows neither sound nor models. Shapes: N or M clips, D embedding values; FAD also takes (N, P, D), P patches a clip, and pools
them. Nothing depends on the order of the clips; what is random (bootstrap, FAD-inf) is seeded. Each function says what a small
set does to it: here, sets often are small.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist, pdist

Array = np.ndarray[Any, np.dtype[Any]]

KAD_SCALE = 100.0
"""kadtk multiplies MMD^2 by this, so that values are easier to read."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def gaussian(features_ND: Array) -> tuple[Array, Array]:
    """Mean (D,) and unbiased covariance (D, D) of at least two clips."""
    features_ND = _pooled(features_ND)
    if len(features_ND) < 2:
        raise ValueError(f"a covariance needs at least 2 clips, not {len(features_ND)}")
    return features_ND.mean(axis=0), np.atleast_2d(np.cov(features_ND, rowvar=False))


def frechet_distance(mean_a_D: Array, covariance_a_DD: Array, mean_b_D: Array, covariance_b_DD: Array) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    tr (A B)^(1/2) is taken from the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: no complex parts, and singular
    covariances (fewer clips than dimensions) need no offset.
    """
    values, vectors = eigh(covariance_a_DD)
    root_a_DD = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root_a_DD @ covariance_b_DD @ root_a_DD)
    shift = np.asarray(mean_a_D) - np.asarray(mean_b_D)
    spread = np.trace(covariance_a_DD) + np.trace(covariance_b_DD) - 2 * np.sqrt(product.clip(min=0)).sum()
    return float(shift @ shift + max(spread, 0.0))


def fad(reference_ND: Array, generated_MD: Array) -> float:
    """Frechet audio distance (arXiv 1812.08466): the two sets as Gaussians.

    Biased upwards, by about a constant over the number of clips, and badly so with fewer clips than dimensions: compare only
    sets of equal size, and see `fad_inf`. Two samples of one distribution do not give 0; a set and itself do.
    """
    a_ND, b_MD = _pooled(reference_ND), _pooled(generated_MD)
    if not 2 <= min(len(a_ND), len(b_MD)) <= a_ND.shape[1]:
        return frechet_distance(*gaussian(a_ND), *gaussian(b_MD))
    # quick for few clips of many dimensions: tr (A B)^(1/2) is the sum of the singular values of X Y^T, centred
    mean_a_D, mean_b_D = a_ND.mean(axis=0), b_MD.mean(axis=0)
    a_ND, b_MD = (a_ND - mean_a_D) / np.sqrt(len(a_ND) - 1), (b_MD - mean_b_D) / np.sqrt(len(b_MD) - 1)
    shift_D = mean_a_D - mean_b_D
    cross = np.linalg.svd(a_ND @ b_MD.T, compute_uv=False).sum()
    return float(shift_D @ shift_D + max((a_ND**2).sum() + (b_MD**2).sum() - 2 * cross, 0.0))


def fad_interval(reference_ND: Array, generated_MD: Array, draws: int = 200, seed: int = 0) -> Interval:
    """FAD and how much it scatters with the clips that happen to be in the sets.

    A resample repeats clips, has fewer different ones, and so lies higher than the sets it is drawn from. Its percentiles are
    moved until their mean is the value: the interval shows the scatter, not the bias of small sets, which is in the value.
    Whole clips are drawn: patches of one clip are no independent witnesses.
    """
    a_ND, b_MD = (np.asarray(x, dtype=np.float64) for x in (reference_ND, generated_MD))
    value = fad(a_ND, b_MD)
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            fad(a_ND[rng.integers(len(a_ND), size=len(a_ND))], b_MD[rng.integers(len(b_MD), size=len(b_MD))])
            for _ in range(draws)
        ]
    )
    low, high = _middle(drawn - drawn.mean() + value) if draws else (float("nan"), float("nan"))
    return Interval(value, max(0.0, low), high)


def fad_inf(reference_ND: Array, generated_MD: Array, points: int = 15, repeats: int = 4, seed: int = 0) -> float:
    """FAD of infinitely many generated clips (arXiv 2311.01616): a line through FAD over 1 / M, read off at 0.

    Subsets of half to all of the clips, drawn without replacement. Removes the bias that the generated set causes, not that
    of the reference; noisy below some hundred clips, and may come out below 0 there.
    """
    rng = np.random.default_rng(seed)
    generated_MD = np.asarray(generated_MD, dtype=np.float64)
    sizes = np.linspace(max(2, len(generated_MD) // 2), len(generated_MD), points).astype(int)
    # a canonical order, so that the subsets do not depend on the order in which the clips came
    generated_MD = generated_MD[np.lexsort(generated_MD.reshape(len(generated_MD), -1).T)]
    values = [
        np.mean([fad(reference_ND, generated_MD[rng.permutation(len(generated_MD))[:size]]) for _ in range(repeats)])
        for size in sizes
    ]
    if len(set(sizes)) < 2:
        raise ValueError(f"FAD-inf needs more than {len(generated_MD)} clips")
    _, intercept = np.polyfit(1 / sizes, values, 1)
    return float(intercept)


def median_bandwidth(reference_ND: Array) -> float:
    """The median distance between two clips of the reference: the usual width of an RBF kernel.

    Raises ValueError if most clips are the same: there is no scale to measure on.
    """
    width = float(np.median(pdist(np.asarray(reference_ND, dtype=np.float64))))
    if not width > 0:
        raise ValueError("most clips of the reference are equal: a kernel distance has no scale")
    return width


def kad(reference_ND: Array, generated_MD: Array, bandwidth: float | None = None, draws: int = 1000, seed: int = 0) -> Interval:
    """Kernel audio distance (arXiv 2502.15602): 100 times the unbiased MMD^2 under an RBF kernel, with its bootstrap interval.

    Kernel exp(-d^2 / (2 width^2)) with the median distance within the reference as its width, as kadtk has it. Unbiased, so
    equal distributions give 0 on average and single values may be slightly negative, at any number of clips from two on (a
    set and itself give less than 0: each clip meets itself across the sets). The interval resamples clips of both sets and
    leaves a clip's pairs with its own copies out, which would look like closeness.
    """
    reference_ND, generated_MD = (np.asarray(x, dtype=np.float64) for x in (reference_ND, generated_MD))
    if min(len(reference_ND), len(generated_MD)) < 2:
        raise ValueError(f"KAD needs at least 2 clips on each side, not {len(reference_ND)} and {len(generated_MD)}")
    gamma = 1 / (2 * (bandwidth or median_bandwidth(reference_ND)) ** 2)
    within_a, within_b, across = (
        np.exp(-gamma * cdist(x, y, "sqeuclidean"))
        for x, y in ((reference_ND, reference_ND), (generated_MD, generated_MD), (reference_ND, generated_MD))
    )
    np.fill_diagonal(within_a, 0.0)
    np.fill_diagonal(within_b, 0.0)

    def distance(weight_a: Array, weight_b: Array) -> float:
        pairs_a = weight_a.sum() ** 2 - weight_a @ weight_a
        pairs_b = weight_b.sum() ** 2 - weight_b @ weight_b
        if not (pairs_a and pairs_b):  # a resample of one clip alone
            return float("nan")
        near = weight_a @ within_a @ weight_a / pairs_a + weight_b @ within_b @ weight_b / pairs_b
        return float(KAD_SCALE * (near - 2 * (weight_a @ across @ weight_b) / (weight_a.sum() * weight_b.sum())))

    rng = np.random.default_rng(seed)
    value = distance(np.ones(len(reference_ND)), np.ones(len(generated_MD)))
    resampled = [
        distance(*(rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in (len(reference_ND), len(generated_MD))))
        for _ in range(draws)
    ]
    return Interval(value, *_middle(np.array(resampled)))


def clap_scores(audio_ND: Array, target_ND: Array) -> Array:
    """(N,) cosine between each sound's embedding and that of what it should be (`target_ND` is (N, D) or one row (1, D))."""
    cosine_N: Array = (_unit(audio_ND) * _unit(target_ND)).sum(axis=1)
    return cosine_N


def density_coverage(reference_ND: Array, generated_MD: Array, neighbours: int = 5) -> tuple[float, float]:
    """Density and coverage (arXiv 2002.09797): fidelity and variety, by balls around each reference clip.

    A ball reaches to the clip's k-th nearest neighbour within the reference. Density counts how many balls hold a generated
    clip, over k (1 for equal distributions, may exceed it); coverage is the share of balls that hold any (with as many
    generated as reference clips, 1 - 2^-k or so at best). Fewer generated clips lower the coverage: compare equal sizes.
    """
    inside_NM = _inside(reference_ND, generated_MD, neighbours)
    return float(inside_NM.sum() / (neighbours * len(generated_MD))), float(inside_NM.any(axis=1).mean())


def density_coverage_intervals(
    reference_ND: Array, generated_MD: Array, neighbours: int = 5, draws: int = 1000, seed: int = 0
) -> tuple[Interval, Interval]:
    """Both with intervals: density by drawing the generated clips anew, coverage as a share of the reference clips (Wilson).

    Resampled clips could only lose coverage. The balls stay as they are: how well the reference stands for its kind is not in.
    """
    inside_NM = _inside(reference_ND, generated_MD, neighbours)
    covered_N = inside_NM.any(axis=1)
    density = bootstrap(np.mean, inside_NM.sum(axis=0) / neighbours, draws=draws, seed=seed)
    return density, share(int(covered_N.sum()), len(covered_N))


def _inside(reference_ND: Array, generated_MD: Array, neighbours: int) -> Array:
    """(N, M) whether a generated clip lies in the ball of a reference clip."""
    if not 1 <= neighbours < len(reference_ND):
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} reference clips, not {len(reference_ND)}")
    within = cdist(reference_ND, reference_ND)
    np.fill_diagonal(within, np.inf)
    radius_N = np.partition(within, neighbours - 1, axis=1)[:, neighbours - 1]
    inside_NM: Array = cdist(reference_ND, generated_MD) < radius_N[:, None]
    return inside_NM


def diversity(features_ND: Array) -> float:
    """Mean cosine distance over all pairs of clips; unbiased at any number from two on, and 0 for copies of one clip."""
    if len(features_ND) < 2:
        raise ValueError("diversity needs at least 2 clips")
    units_ND = _unit(features_ND)
    n, total_D = len(units_ND), units_ND.sum(axis=0)
    return float(max(0.0, 1 - (total_D @ total_D - n) / (n * (n - 1))))  # the sum over all pairs, without the pairs


def diversity_interval(features_ND: Array, draws: int = 1000, seed: int = 0) -> Interval:
    """Diversity and its bootstrap interval, which leaves a clip's pairs with its own copies out."""
    value = diversity(features_ND)
    apart_NN = 1 - _unit(features_ND) @ _unit(features_ND).T
    np.fill_diagonal(apart_NN, 0.0)
    rng = np.random.default_rng(seed)
    drawn = []
    for weight_N in rng.multinomial(len(apart_NN), np.full(len(apart_NN), 1 / len(apart_NN)), size=draws).astype(float):
        pairs = weight_N.sum() ** 2 - weight_N @ weight_N
        drawn.append(max(0.0, weight_N @ apart_NN @ weight_N / pairs) if pairs else np.nan)
    return Interval(value, *_middle(np.array(drawn)))


def nearest(queries_ND: Array, reference_MD: Array, metric: str = "cosine") -> tuple[Array, Array]:
    """For each query the distance (N,) to the nearest reference clip, and which one it is (N,)."""
    distance_NM = cdist(np.asarray(queries_ND, dtype=np.float64), np.asarray(reference_MD, dtype=np.float64), metric)
    index_N = distance_NM.argmin(axis=1)
    return distance_NM[np.arange(len(index_N)), index_N], index_N


def bootstrap(statistic: Callable[..., float], *samples: Array, draws: int = 1000, seed: int = 0) -> Interval:
    """`statistic(*samples)` with its percentile interval: each sample's clips are drawn anew, independently.

    Too narrow below some ten clips, and of no use where all clips agree: for shares see `share`. Statistics that look at
    pairs of clips must do their own resampling (as `kad` does): a clip drawn twice is no close pair.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(sample) for sample in samples]
    drawn = [statistic(*(array[rng.integers(len(array), size=len(array))] for array in arrays)) for _ in range(draws)]
    return Interval(float(statistic(*arrays)), *_middle(np.array(drawn)))


def share(hits: int, of: int) -> Interval:
    """A share of clips with its Wilson interval, which stays honest for few clips and for 0 or all of them.

    Assumes independent clips: clips cut from one recording are not, and deserve a wider interval.
    """
    if not 0 <= hits <= of or of == 0:
        raise ValueError(f"no share of {hits} in {of}")
    z2, p = 1.959964**2, hits / of
    centre, half = p + z2 / (2 * of), np.sqrt(z2 * (p * (1 - p) + z2 / (4 * of)) / of)
    return Interval(p, float(max(0.0, (centre - half) / (1 + z2 / of))), float(min(1.0, (centre + half) / (1 + z2 / of))))


def _middle(values: Array) -> tuple[float, float]:
    if not np.isfinite(values).any():  # no draws asked for
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _pooled(features: Array) -> Array:
    """(N, D) or (N, P, D) -> (N, D) or (N * P, D), float64."""
    features = np.asarray(features, dtype=np.float64)
    return features.reshape(-1, features.shape[-1])


def _unit(features_ND: Array) -> Array:
    features_ND = np.asarray(features_ND, dtype=np.float64)
    unit_ND: Array = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True).clip(min=1e-12)
    return unit_ND
