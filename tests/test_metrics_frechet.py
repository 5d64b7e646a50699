"""The Frechet distance: closed forms, other implementations, streams that merge, and what is refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from xdyna.errors import UserError
from xdyna.metrics.frechet import Moments, frechet_distance, gaussian_distance, shortage


def moments(rows: NDArray[np.floating]) -> Moments:
    found = Moments()
    found.add(rows)
    return found


def drawn(count: int, size: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float64]:
    """Correlated Gaussian vectors."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(size, size)) / np.sqrt(size)
    return rng.normal(size=(count, size)) @ (mixing * scale) + shift


def test_gaussians_in_closed_form() -> None:
    """With covariances that share their axes: the distances of means and of standard deviations, squared."""
    mean1, mean2 = np.asarray([0.0, 1.0, 2.0]), np.asarray([1.0, 1.0, 0.0])
    deviations1, deviations2 = np.asarray([1.0, 2.0, 0.5]), np.asarray([3.0, 2.0, 0.0])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    covariances = [turn @ np.diag(deviations**2) @ turn.T for deviations in (deviations1, deviations2)]
    wanted = ((mean1 - mean2) ** 2).sum() + ((deviations1 - deviations2) ** 2).sum()
    assert gaussian_distance(mean1, covariances[0], mean2, covariances[1]) == pytest.approx(
        wanted, rel=1e-7
    )  # one deviation is 0
    assert gaussian_distance(mean1, covariances[0], mean1, covariances[0]) == pytest.approx(0, abs=1e-12)


def test_drawn_gaussians_come_near_their_own_distance() -> None:
    first, second = moments(drawn(200_000, 4, 1)), moments(drawn(200_000, 4, 2, scale=1.5, shift=0.3))
    mixing = np.random.default_rng(7).normal(size=(4, 4)) / 2
    wanted = gaussian_distance(np.zeros(4), mixing.T @ mixing, np.full(4, 0.3), 2.25 * mixing.T @ mixing)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("count", "size"), [(300, 24), (20, 40)])  # of full rank, and of fewer rows than columns
def test_equal_to_other_implementations(count: int, size: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="SciPy is not installed")
    import torch

    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    first, second = drawn(count, size, 1), drawn(count, size, 2, scale=1.3, shift=0.2)
    found = frechet_distance(moments(first), moments(second))
    means, covariances = [x.mean(0) for x in (first, second)], [np.cov(x.T) for x in (first, second)]
    if count > size:
        root = linalg.sqrtm(covariances[0] @ covariances[1]).real
        wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert found == pytest.approx(float(wanted), rel=1e-8)
    given = [torch.as_tensor(value) for pair in zip(means, covariances, strict=True) for value in pair]
    assert found == pytest.approx(float(fid._compute_fid(*given)), rel=1e-4)


def test_parts_add_up_in_any_order() -> None:
    rows = drawn(120, 8, 3)
    whole, pieces, late = moments(rows), Moments(), Moments()
    late.add(rows[100:])
    for start in range(0, 100, 7):
        pieces.add(rows[start : min(start + 7, 100)])
    late.merge(pieces)
    late.merge(Moments())  # of a worker that had nothing to do
    assert late.count == whole.count == 120
    assert np.allclose(late.mean, rows.mean(0), atol=1e-12)
    assert np.allclose(late.covariance, np.cov(rows.T), atol=1e-12)
    other = moments(drawn(90, 8, 4, shift=1.0))
    assert frechet_distance(late, other) == pytest.approx(frechet_distance(whole, other), rel=1e-10)


def test_distance_ignores_order_and_rotation_and_grows_with_what_differs() -> None:
    truth = drawn(200, 6, 5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    made = drawn(200, 6, 6, shift=0.5)
    value = frechet_distance(moments(made), moments(truth))
    assert frechet_distance(moments(truth), moments(made)) == pytest.approx(value)
    assert frechet_distance(moments(made[::-1] @ turn), moments(truth @ turn)) == pytest.approx(value)
    grades = [frechet_distance(moments(truth * scale + shift), moments(truth)) for scale, shift in
              ((1, 0), (1.1, 0.1), (1.3, 0.3), (2, 1))]  # fmt: skip
    assert grades[0] == pytest.approx(0, abs=1e-9)
    assert grades == sorted(grades)
    frozen = frechet_distance(moments(np.repeat(truth[:1], 50, 0)), moments(truth))  # no spread at all
    assert frozen > grades[2]


def test_large_means_do_not_drown_small_spreads() -> None:
    """float32 sums would give nonsense here."""
    rows = (drawn(400, 5, 8) * 0.01 + 300).astype(np.float32)
    other = (drawn(400, 5, 9) * 0.01 + 300).astype(np.float32)
    exact = [part.astype(float) for part in (rows, other)]
    wanted = gaussian_distance(*(value for part in exact for value in (part.mean(0), np.cov(part.T))))
    assert frechet_distance(moments(rows), moments(other)) == pytest.approx(wanted, rel=1e-3)


def test_what_is_not_finite_is_refused_and_named() -> None:
    rows = drawn(5, 3, 0)
    rows[2, 1] = np.nan
    with pytest.raises(UserError, match=r"clip 7, fid/fg: 1 of 5 feature vectors hold NaN"):
        Moments().add(rows, "clip 7, fid/fg")
    with pytest.raises(ValueError, match=r"wanted \[n, D\]"):
        Moments().add(rows[0])
    found = moments(drawn(5, 3, 0))
    with pytest.raises(ValueError, match="4 columns, wanted 3 as before"):
        found.add(drawn(5, 4, 0))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(found, moments(drawn(5, 4, 0)))


def test_too_few_rows_are_said() -> None:
    assert np.isnan(frechet_distance(moments(drawn(1, 3, 0)), moments(drawn(9, 3, 0))))
    assert np.isnan(frechet_distance(Moments(), moments(drawn(9, 3, 0))))
    assert "1 feature vectors, wanted at least 2" in str(shortage(1, 3, "fvd/all"))
    assert "fvd/all: 400 feature vectors of length 400" in str(shortage(400, 400, "fvd/all"))
    assert shortage(401, 400, "fvd/all") is None
