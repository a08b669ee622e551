"""Estimators from nearest-neighbour distances, for evaluation."""

from __future__ import annotations

import math
import operator
import warnings
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stib_fast.ops.knn_mi import neighbour_counts, neighbour_radii

NanPolicy = Literal["raise", "omit"]
Table = NDArray[np.float64]
BAR_AFTER_SECONDS = 5
# Values that equal another one by chance stay below it: float32 normal ones up to some 3,000,000.
TIED_SHARE = 0.05


class KnnEstimate(NamedTuple):
    """A mean over repetitions and its standard error, both in nats."""

    value: float
    standard_error: float


def knn_mi(
    x: Tensor,
    y: Tensor,
    k: int = 20,
    *,
    variant: int = 1,
    jitter: float = 1e-10,
    seed: int = 0,
    nan_policy: NanPolicy = "raise",
) -> Tensor:
    r"""Estimate the mutual information I(x; y) in nats from k-nearest-neighbour distances.

    Kraskov, Stögbauer, Grassberger (2004), Phys. Rev. E 69:066138, with the maximum norm.
    Algorithm 1, Eq. (8), and algorithm 2, Eq. (9):

    .. math::
        I_1 &= \psi(k) + \psi(n) - \langle \psi(n_x + 1) + \psi(n_y + 1) \rangle \\
        I_2 &= \psi(k) - 1/k + \psi(n) - \langle \psi(n_x) + \psi(n_y) \rangle

    In the first, n_x and n_y count the other rows strictly nearer, in x and in y, than the k-th
    neighbour in the joint space; in the second, those not further than the furthest of the k
    neighbours is in x, and in y. Rows that tie for the k-th neighbour all are neighbours there.

    The estimate depends on the scale of each column, as the maximum norm does. It can be negative
    when the true value is near 0, and reads too low when the true value is high for n and k.

    Parameters
    ----------
    x : Tensor
        ``[n, d]`` or ``[n]``, any real floating dtype, device and strides.
    y : Tensor
        ``[n, m]`` or ``[n]``, on the device of `x`.
    k : int
        Number of neighbours, ``1 <= k < n``.
    variant : {1, 2}
        Algorithm of the paper: 2 has less bias and more spread where k is large for n.
    jitter : float
        Standard deviation of the Gaussian noise that breaks ties, relative to each column's
        standard deviation (for a constant column, which thereby carries no information, to the
        least of the others on both sides). It is drawn and added in float64, to centred columns.
        With 0 the rows are taken as they are, and a row with at least k exact copies has
        n_x = n_y = 0 in algorithm 1, so that many copies give a large, meaningless estimate.
    seed : int
        Seed of the jitter; the result is the same for the same seed.
    nan_policy : {"raise", "omit"}
        ``"omit"`` leaves out the rows with NaN or infinity on either side, and warns of how many.

    Returns
    -------
    Tensor
        0-dimensional, float64, on the CPU, in nats; not clipped at 0 and without gradient.

    Raises
    ------
    ValueError
        For NaN or infinite entries, an integer, bool or complex dtype, more than two dimensions,
        no rows or columns, different numbers of rows, k outside its range, a jitter that is
        negative or not finite, columns whose range overflows, and rows that k others equal in spite
        of the jitter.

    Notes
    -----
    Distances are float64 if x or y is, and float32 otherwise, also for half precision. Points are
    rounded to float32 after the jitter, which rounds most of it away. Where that leaves ties in a
    column (rounded or discrete data: more than 1 in 20 values equal another, or k equal one),
    distances are float64, at about twice the time; with ``jitter=0`` ties are meant, and stay.

    Every backend finds the same neighbours and counts, for any number of threads. A bar shows the
    progress of a long run in a terminal, and Ctrl-C stops it. The compiled kernels are made for
    k up to 255; beyond, plain PyTorch sorts.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    >>> x, y = z[:, 0], 0.9 * z[:, 0] + 0.19**0.5 * z[:, 1]  # correlation 0.9: 0.83 nats
    >>> bool((F.knn_mi(x, y) - 0.83).abs() < 0.1)
    True
    """
    k, variant, seed = _integers(k=k, variant=variant, seed=seed)
    tables, dtype, device = _checked({"x": x, "y": y}, k, jitter, nan_policy)
    _check_variant(variant)
    x_points, y_points = _points(tables, k, jitter, seed, dtype, device)
    return _kraskov(x_points, y_points, k, variant, refuse_copies=jitter > 0)


def knn_mi_subsampled(
    x: Tensor,
    y: Tensor,
    k: int = 20,
    *,
    subsample: int,
    repetitions: int = 10,
    variant: int = 1,
    jitter: float = 1e-10,
    seed: int = 0,
    nan_policy: NanPolicy = "raise",
) -> KnnEstimate:
    """Average `knn_mi` over disjoint random subsamples, with the standard error of that mean.

    For samples too large to be taken whole: the cost falls from n² to repetitions · subsample². The
    estimate has the bias of a sample of `subsample` rows, which the standard error does not show.

    Parameters
    ----------
    x, y, k, variant, jitter, nan_policy
        As for `knn_mi`.
    subsample : int
        Rows of each subsample, more than k.
    repetitions : int
        Number of subsamples, 2 at least. They share no row, so that their estimates are
        independent and the error is that of the mean: the standard deviation over its root.
    seed : int
        Seed of the choice of rows and of the jitter.

    Returns
    -------
    KnnEstimate
        ``value`` and ``standard_error`` in nats.

    Raises
    ------
    ValueError
        As for `knn_mi`, and if the subsamples need more rows than there are.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    >>> value, error = F.knn_mi_subsampled(z[:, 0], z[:, 1], 5, subsample=400)
    >>> abs(value) < 4 * error
    True
    """
    k, variant, seed = _integers(k=k, variant=variant, seed=seed)
    subsample, repetitions = _integers(subsample=subsample, repetitions=repetitions)
    tables, dtype, device = _checked({"x": x, "y": y}, k, jitter, nan_policy)
    _check_variant(variant)
    rows = len(tables["x"])
    if not k < subsample <= rows:
        raise ValueError(
            f"subsample must be more than k = {k} and at most the {rows} rows, got {subsample}"
        )
    if not 2 <= repetitions <= rows // subsample:
        raise ValueError(
            f"repetitions must be from 2 to {rows // subsample}, as many subsamples of {subsample} "
            f"rows as {rows} rows hold, got {repetitions}; take a smaller subsample"
        )
    x_points, y_points = _points(tables, k, jitter, seed, dtype, device)
    chosen = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(rows)).to(device)
    estimates = torch.stack(
        [
            _kraskov(x_points[part], y_points[part], k, variant, refuse_copies=jitter > 0)
            for part in chosen[: repetitions * subsample].split(subsample)
        ]
    )
    return KnnEstimate(float(estimates.mean()), float(estimates.std()) / math.sqrt(repetitions))


def knn_entropy(
    x: Tensor,
    k: int = 20,
    *,
    jitter: float = 1e-10,
    seed: int = 0,
    nan_policy: NanPolicy = "raise",
) -> Tensor:
    r"""Estimate the differential entropy of x in nats from k-nearest-neighbour distances.

    Kozachenko and Leonenko (1987) with the maximum norm: Eq. (20) of Kraskov et al. (2004),

    .. math:: H = \psi(n) - \psi(k) + d \, \langle \log 2 r \rangle

    with r the distance of a row to its k-th neighbour.

    Parameters
    ----------
    x : Tensor
        ``[n, d]`` or ``[n]``, any real floating dtype, device and strides.
    k, jitter, seed, nan_policy
        As for `knn_mi`.

    Returns
    -------
    Tensor
        0-dimensional, float64, on the CPU, in nats; without gradient. With ``jitter=0`` it is
        -inf where a row has k exact copies, as the entropy of a discrete part is. Jitter
        makes that, and a constant column, a finite number that only tells of the jitter.

    Raises
    ------
    ValueError
        As for `knn_mi`.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> x = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))  # H = 0
    >>> bool(F.knn_entropy(x).abs() < 0.1)
    True
    """
    k, seed = _integers(k=k, seed=seed)
    tables, dtype, device = _checked({"x": x}, k, jitter, nan_policy)
    (points,) = _points(tables, k, jitter, seed, dtype, device)
    n, d = points.shape
    with _bar("knn_entropy", n) as bar:
        radius, _ = neighbour_radii(points, d, k, 1, bar.update)
    if jitter > 0:
        _refuse_copies(radius)
    k_and_n = _digamma(k, n)
    return k_and_n[1] - k_and_n[0] + d * (2 * radius.cpu().double()).log().mean()


def _kraskov(x: Tensor, y: Tensor, k: int, variant: int, *, refuse_copies: bool) -> Tensor:
    n = len(x)
    with _bar("knn_mi", 3 * n) as bar:
        radii = neighbour_radii(torch.cat([x, y], dim=1), x.shape[1], k, variant, bar.update)
        if refuse_copies:
            _refuse_copies(torch.maximum(*radii))
        # With the row itself the counts are n_x + 1 and n_y + 1.
        x_count, y_count = (
            neighbour_counts(side, radius, variant == 2, bar.update).cpu()
            for side, radius in zip((x, y), radii, strict=True)
        )
    k_and_n = _digamma(k, n).sum()
    if variant == 2:
        return k_and_n - 1 / k - (_mean_digamma(x_count - 1) + _mean_digamma(y_count - 1))
    # Nothing is nearer than a radius of 0, not even the row itself.
    return k_and_n - (_mean_digamma(x_count.clamp(min=1)) + _mean_digamma(y_count.clamp(min=1)))


def _digamma(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.float64, device="cpu").digamma()


def _mean_digamma(count: Tensor) -> Tensor:
    return count.double().digamma().mean()


def _bar(what: str, rows: int) -> tqdm:
    return tqdm(total=rows, desc=what, unit="row", delay=BAR_AFTER_SECONDS, disable=None)


# ---- input ---------------------------------------------------------------------------------------


def _integers(**values: object) -> list[int]:
    """Refuse what is no integer; NumPy's are."""
    for name, value in values.items():
        if not hasattr(value, "__index__"):
            raise ValueError(f"{name} must be an integer, got {value!r}")
    return [operator.index(value) for value in values.values()]  # type: ignore[arg-type]


def _check_variant(variant: int) -> None:
    if variant not in (1, 2):
        raise ValueError(f"variant must be 1 or 2, got {variant!r}")


def _checked(
    values: dict[str, Tensor], k: int, jitter: float, nan_policy: str
) -> tuple[dict[str, Table], torch.dtype, torch.device]:
    """Tables in float64 with the dtype and device of the points; refuses bad input."""
    for name, value in values.items():
        _check(name, value)
    sizes = [len(value) for value in values.values()]
    if sizes[0] != sizes[-1]:
        raise ValueError(
            f"x and y must have the same number of rows, got {sizes[0]} and {sizes[1]}"
        )
    devices = [value.device for value in values.values()]
    if devices[0] != devices[-1]:
        raise ValueError(f"x is on {devices[0]} but y is on {devices[1]}; move one")
    tables = {
        name: value.detach().cpu().double().numpy().reshape(sizes[0], -1)
        for name, value in values.items()
    }
    tables = _finite_rows(tables, nan_policy)
    rows = len(next(iter(tables.values())))
    if not 1 <= k < rows:
        raise ValueError(f"k must be at least 1 and less than the number of rows {rows}, got {k}")
    if not hasattr(jitter, "__float__") or not 0 <= jitter < math.inf:
        raise ValueError(f"jitter must be finite and not negative, got {jitter}")
    wide = any(value.dtype == torch.float64 for value in values.values())
    return tables, torch.float64 if wide else torch.float32, devices[0]


def _check(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} must be a torch tensor, got {type(value).__name__}; convert it with "
            f"torch.as_tensor({name})"
        )
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no values")
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name} must be a dense tensor; convert it with {name}.to_dense()")
    if not value.is_floating_point():
        raise ValueError(
            f"{name} must have a real floating dtype, got {value.dtype}; cast it with "
            f"{name}.double()"
        )
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty [n, d] or [n] tensor, got {tuple(value.shape)}"
        )


def _finite_rows(tables: dict[str, Table], nan_policy: str) -> dict[str, Table]:
    if nan_policy not in get_args(NanPolicy):
        raise ValueError(f"nan_policy must be 'raise' or 'omit', got {nan_policy!r}")
    finite: dict[str, NDArray[np.bool_]] = {
        name: np.logical_and.reduce(np.isfinite(table), axis=1) for name, table in tables.items()
    }
    if nan_policy == "raise":
        for name, rows in finite.items():
            if not rows.all():
                raise ValueError(
                    f"{name} holds NaN or infinity in {_named(~rows)}; remove these rows or give "
                    "nan_policy='omit'"
                )
    kept: NDArray[np.bool_] = np.logical_and.reduce(list(finite.values()))
    if not kept.all():
        warnings.warn(
            f"omitted {_named(~kept)} of {len(kept)} that hold NaN or infinity", stacklevel=4
        )
        tables = {name: table[kept] for name, table in tables.items()}
    return tables


def _named(rows: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(rows)
    return f"{places.size} rows (first: {', '.join(map(str, places[:5]))})"


def _points(
    tables: dict[str, Table],
    k: int,
    jitter: float,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """The rows with their jitter, one tensor for each side, in `dtype` or, if ties ask, float64."""
    # On the CPU whatever the device: the same seed gives the same points everywhere.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = _jittered(tables, jitter, seed) if jitter > 0 else tables
    points = {name: _rounded(name, table, dtype) for name, table in wide.items()}
    if jitter > 0 and dtype == torch.float32 and any(_tied(side, k) for side in points.values()):
        points = {name: _rounded(name, table, torch.float64) for name, table in wide.items()}
    return [side.to(device) for side in points.values()]


def _rounded(name: str, table: Table, dtype: torch.dtype) -> Tensor:
    points = torch.from_numpy(table).to(dtype).contiguous()
    if not torch.isfinite(points.amax(dim=0) - points.amin(dim=0)).all():
        raise ValueError(
            f"{name} has a column whose range is too large for {dtype}; scale it down"
            + (f" or give {name}.double()" if dtype == torch.float32 else "")
        )
    return points


def _tied(points: Tensor, k: int) -> bool:
    """Whether many values of a column equal another, or one has k others."""
    ordered = points.sort(dim=0).values
    pairs = (ordered[1:] == ordered[:-1]).double().mean(dim=0)
    return bool((pairs > TIED_SHARE).any() or (ordered[k:] == ordered[:-k]).any())


def _jittered(tables: dict[str, Table], jitter: float, seed: int) -> dict[str, Table]:
    # Centred, because next to a large offset the jitter would be rounded away.
    centred = {name: table - table.mean(axis=0) for name, table in tables.items()}
    spread = {name: _spread(table, centred[name]) for name, table in tables.items()}
    positive = [value for side in spread.values() for value in side if value > 0]
    least = min(positive, default=1.0)
    rng = np.random.default_rng(seed)
    return {
        name: table
        + jitter
        * np.where(spread[name] > 0, spread[name], least)
        * rng.standard_normal(table.shape)
        for name, table in centred.items()
    }


def _spread(table: Table, centred: Table) -> Table:
    """Standard deviation of each column, whatever its size; 0 where it is constant."""
    largest = np.abs(centred).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # squares would over- or underflow
    constant = table.max(axis=0) == table.min(axis=0)
    return np.where(constant, 0.0, unit * (centred / unit).std(axis=0))


def _refuse_copies(radius: Tensor) -> None:
    """Refuse rows that the jitter was to tell apart, were it not for their rounding."""
    copies = (radius == 0).cpu().numpy()
    if copies.any():
        raise ValueError(
            f"{_named(copies)} have k neighbours at distance 0: {radius.dtype} rounds the jitter "
            "away. Give a larger jitter, or jitter=0 to take the rows as they are"
        )
