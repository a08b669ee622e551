"""Conditional and copula mutual information: against the published formulas, and by their laws.

TOLERANCE is that of test_properties.py, for the same reasons; here a side's correlations are those
of its residuals.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import norm, rankdata
from torch import Tensor

from stib_fast import functional as F

TOLERANCE = 1e-6
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CAP = -0.5 * math.log(2e-9)  # of one pair of columns, by the default eps
seeds = st.integers(0, 2**32 - 1)
few = st.integers(1, 4)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def dependent(seed: int, n: int, m: int, p: int, rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Columns that share some of their variance, beyond what c explains as well."""
    c, shared = normal(seed, rows, p), normal(seed + 1, rows, 2)
    x, y = (
        c @ normal(seed + 2 + i, p, d) / p**0.5
        + shared @ normal(seed + 4 + i, 2, d) / 2
        + 0.5 * normal(seed + 6 + i, rows, d)
        for i, d in enumerate((n, m))
    )
    return x, y, c


def entropy(columns: np.ndarray, corrected: bool) -> float:
    """Of the Gaussian, as in Ince et al. 2017, up to what cancels between the entropies."""
    rows, d = columns.shape
    value = np.linalg.slogdet(np.cov(columns.T).reshape(d, d))[1] / 2
    bias = sum(digamma((rows - i) / 2) for i in range(1, d + 1)) + d * math.log(2 / (rows - 1))
    return value - corrected * bias / 2


def reference(parts: list[np.ndarray], corrected: bool) -> float:
    """H(X, C) + H(Y, C) - H(X, Y, C) - H(C); without C, H(X) + H(Y) - H(X, Y)."""
    x, y, *c = parts
    joint = [np.hstack(each) for each in ([x, *c], [y, *c], [x, y, *c])]
    return float(
        entropy(joint[0], corrected)
        + entropy(joint[1], corrected)
        - entropy(joint[2], corrected)
        - sum(entropy(each, corrected) for each in c)
    )


def reference_scores(x: np.ndarray) -> np.ndarray:
    return norm.ppf(rankdata(x, axis=0) / (len(x) + 1))


# ---- against the formulas ------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (2, 1, 3), (3, 4, 2), (1, 5, 8)])
@pytest.mark.parametrize("rows", [25, 300])
def test_conditional(rows: int, n: int, m: int, p: int, corrected: bool, backend: str) -> None:
    x, y, c = (part + 100 for part in dependent(3, n, m, p, rows))
    ours = F.gaussian_cmi(x, y, c, eps=0, bias_correction=corrected)
    assert abs(ours - reference([x.numpy(), y.numpy(), c.numpy()], corrected)) <= TOLERANCE
    of_moments = F.gaussian_cmi_of(F.moments(x, y, c), eps=0, bias_correction=corrected)
    assert of_moments == ours


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_copula(conditional: bool, corrected: bool, backend: str) -> None:
    x, y, c = dependent(4, 3, 2, 2)
    x, y, c = (x * 2).round(), y.exp(), c**3  # x: about 10 different values a column
    parts = [x, y, c] if conditional else [x, y]
    function = F.gaussian_copula_cmi if conditional else F.gaussian_copula_mi
    expected = reference([reference_scores(part.numpy()) for part in parts], corrected)
    # eps changes 1 - rho^2 > 0.05 by 2e-9: 2e-8 a dimension.
    assert abs(function(*parts, bias_correction=corrected) - expected) <= 1e-7
    if corrected:
        assert function(*parts) == function(*parts, bias_correction=True)


def test_normal_scores() -> None:
    x = normal(5, 301, 4)
    x[:, 1] = x[:, 1].round()
    x[:, 2] = 7.5
    scores = F.normal_scores(x)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, reference_scores(x.numpy()), rtol=0, atol=1e-14)
    assert not scores[:, 2].any()


def test_the_correction_leaves_no_bias() -> None:
    # x and y share c and half of the rest: I(X; Y | C) = -1/2 log(1 - 1/4). 8 rows, 5 columns.
    truth = -0.5 * math.log(0.75)
    values = []
    for seed in range(500):
        c, shared, e, f = (normal(4 * seed + i, 8, 3 if i == 0 else 1) for i in range(4))
        x, y = c[:, :1] + shared + e, c.sum(1, keepdim=True) + shared + f
        values.append([F.gaussian_cmi(x, y, c, bias_correction=each) for each in (False, True)])
    estimates = torch.tensor(values)
    error = estimates[:, 1].std() / 500**0.5
    uncorrected, corrected = estimates.mean(0)
    assert abs(corrected - truth) <= 4 * error
    assert uncorrected - truth > 8 * error  # 500 samples can tell


# ---- laws ----------------------------------------------------------------------------------------


@given(seeds, few, few, few)
def test_chain_rule(seed: int, n: int, m: int, p: int) -> None:
    x, y, c = dependent(seed, n, m, p)
    whole = F.gaussian_mi(x, torch.cat([y, c], 1))
    assert abs(F.gaussian_mi(x, c) + F.gaussian_cmi(x, y, c) - whole) <= TOLERANCE
    scores = [F.normal_scores(part) for part in (x, y, c)]
    whole = F.gaussian_mi(scores[0], torch.cat(scores[1:], 1))
    rest = F.gaussian_copula_cmi(x, y, c, bias_correction=False)
    assert abs(F.gaussian_mi(scores[0], scores[2]) + rest - whole) <= TOLERANCE


@given(seeds, few, few, few)
def test_symmetric_and_not_negative(seed: int, n: int, m: int, p: int) -> None:
    x, y, c = dependent(seed, n, m, p)
    for function in (F.gaussian_cmi, F.gaussian_copula_cmi):
        value = function(x, y, c, bias_correction=False)
        assert abs(function(y, x, c, bias_correction=False) - value) <= TOLERANCE
        assert value >= -TOLERANCE
    assert abs(F.gaussian_copula_mi(x, y) - F.gaussian_copula_mi(y, x)) <= TOLERANCE


@given(seeds, few, few, few)
def test_affine_maps_of_each_part_change_nothing(seed: int, n: int, m: int, p: int) -> None:
    parts = dependent(seed, n, m, p)
    mapped = [
        # Of condition 10 at most: an orthogonal matrix, and columns of size 1 to 10.
        part @ torch.linalg.qr(normal(seed + i, d, d)).Q * torch.logspace(0, 1, d) + 30 * i - 20
        for i, (part, d) in enumerate(zip(parts, (n, m, p), strict=True))
    ]
    assert abs(F.gaussian_cmi(*mapped) - F.gaussian_cmi(*parts)) <= TOLERANCE


@given(seeds, few, few)
def test_condition_that_is_constant_or_uncorrelated(seed: int, n: int, m: int) -> None:
    x, y, _ = dependent(seed, n, m, 1)
    expected = F.gaussian_mi(x, y)
    constant = torch.full((200, 2), 0.1, dtype=torch.float64)
    assert abs(F.gaussian_cmi(x, y, constant) - expected) <= TOLERANCE
    assert abs(
        F.gaussian_copula_cmi(x, y, constant, bias_correction=False)
        - F.gaussian_copula_mi(x, y, bias_correction=False)
    ) <= TOLERANCE  # fmt: skip
    # Orthogonal to every column, and to the constant.
    others = torch.linalg.qr(torch.cat([torch.ones(200, 1).double(), x, y], 1)).Q
    c = normal(seed, 200, 3)
    c = c - others @ (others.mT @ c)
    assert abs(F.gaussian_cmi(x, y, c) - expected) <= TOLERANCE


@given(seeds, few, few, few)
def test_independent_blocks_add(seed: int, n: int, m: int, p: int) -> None:
    # Blocks over disjoint sets of orthogonal columns are uncorrelated exactly.
    ones = torch.ones(200, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, normal(seed, 200, 2 * (n + m + p))], 1)).Q[:, 1:]
    blocks = []
    for i, block in enumerate(basis.split([n + m + p] * 2, dim=1)):
        c, e, f = block.split([p, n, m], dim=1)
        x = c @ normal(seed + i, p, n) + e
        blocks.append((x, x @ normal(seed + 2 + i, n, m) + c[:, :1] + f, c))
    together = F.gaussian_cmi(*(torch.cat(parts, 1) for parts in zip(*blocks, strict=True)))
    assert abs(together - sum(F.gaussian_cmi(*block) for block in blocks)) <= TOLERANCE


@given(seeds, few, few, few, st.randoms(use_true_random=False))
def test_copula_sees_ranks_alone(seed: int, n: int, m: int, p: int, random) -> None:
    parts = dependent(seed, n, m, p)
    maps = [torch.exp, torch.atan, lambda x: x**3, lambda x: 5 * x - 1e3, torch.sinh]
    mapped = [
        torch.stack([random.choice(maps)(column) for column in part.T], dim=1) for part in parts
    ]
    assert F.gaussian_copula_mi(*mapped[:2]) == F.gaussian_copula_mi(*parts[:2])
    assert F.gaussian_copula_cmi(*mapped) == F.gaussian_copula_cmi(*parts)
    # Decreasing maps turn the scores round.
    turned = [-part for part in mapped]
    assert abs(F.gaussian_copula_cmi(*turned) - F.gaussian_copula_cmi(*parts)) <= TOLERANCE
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
    shuffled = F.gaussian_copula_cmi(*(part[rows] for part in parts))
    assert abs(shuffled - F.gaussian_copula_cmi(*parts)) <= TOLERANCE


def test_ties_by_rank_not_by_place() -> None:
    # Two independent columns of a few values: ranked by place, tied rows would agree.
    x, y = ((normal(i, 2000, 1) * 0.8).round() for i in (6, 7))
    # Bias is corrected; the spread of I is 1 / (2 rows) for independent columns.
    assert abs(F.gaussian_copula_mi(x, y)) <= 4 / (2 * 2000)


# ---- defined on every input ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, backend: str) -> None:
    parts = [part.to(dtype) for part in dependent(8, 2, 3, 2, 500)]
    wide = [part.double() for part in parts]
    for function, arguments in (
        (F.gaussian_cmi, 3),
        (F.gaussian_copula_mi, 2),
        (F.gaussian_copula_cmi, 3),
    ):
        value = function(*parts[:arguments])
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # The columns are the same numbers; only the result is rounded.
        torch.testing.assert_close(
            value.double(), function(*wide[:arguments]), rtol=2**-23, atol=1e-12
        )


def test_gradients(backend: str) -> None:
    parts = [part.requires_grad_() for part in dependent(9, 2, 1, 1, 10)]
    assert torch.autograd.gradcheck(F.gaussian_cmi, parts)
    assert torch.autograd.gradgradcheck(F.gaussian_cmi, parts)
    value = F.gaussian_copula_mi(parts[0], parts[1])
    assert not value.requires_grad


def test_compiled(library: None) -> None:
    parts = dependent(10, 2, 2, 1)
    compiled = torch.compile(F.gaussian_cmi, fullgraph=True, backend="eager")
    x = parts[0].clone().requires_grad_()
    compiled(x, *parts[1:]).backward()
    plain = parts[0].clone().requires_grad_()
    F.gaussian_cmi(plain, *parts[1:]).backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-12, atol=1e-15)


def test_weights_repeat_rows(backend: str) -> None:
    parts = dependent(11, 2, 1, 2)
    times = torch.arange(200) % 3
    repeated = [torch.repeat_interleave(part, times, dim=0) for part in parts]
    for corrected in (False, True):
        weighted = F.gaussian_cmi(*parts, weight=times, bias_correction=corrected)
        expected = F.gaussian_cmi(*repeated, bias_correction=corrected)
        assert abs(weighted - expected) <= 1e-12


def test_batches_add(backend: str) -> None:
    parts = dependent(12, 2, 1, 2)
    batches = [F.moments(*batch) for batch in zip(*(p.split(70) for p in parts), strict=True)]
    whole = F.gaussian_cmi_of(batches[0] + batches[1] + batches[2], bias_correction=True)
    assert abs(whole - F.gaussian_cmi(*parts, bias_correction=True)) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_columns_count_for_nothing(dtype: torch.dtype, backend: str) -> None:
    parts = [part.to(dtype) for part in dependent(13, 2, 2, 2)]
    constant = torch.full((200, 1), -3.7, dtype=dtype)
    expected = F.gaussian_cmi(*parts)
    for i in range(3):
        wider = [torch.cat([part, constant], 1) if i == j else part for j, part in enumerate(parts)]
        torch.testing.assert_close(F.gaussian_cmi(*wider), expected, rtol=1e-6, atol=1e-9)
        uncorrected = F.gaussian_copula_cmi(*parts, bias_correction=False)
        value = F.gaussian_copula_cmi(*wider, bias_correction=False)
        torch.testing.assert_close(value, uncorrected, rtol=1e-6, atol=1e-9)
    assert F.gaussian_cmi(constant, *parts[1:]) == 0
    assert F.gaussian_copula_mi(constant, constant, bias_correction=False) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rest", [0.0, 1e-16, 1e-13, 1e-10])
def test_what_is_given_tells_nothing_more(rest: float, dtype: torch.dtype, backend: str) -> None:
    # Of x and y, c leaves the same `rest`, of which little is above the noise of 1e-6 (squared).
    c, shared = normal(14, 300, 3), rest * normal(15, 300, 1)
    x, y = c @ normal(16, 3, 2) + shared, c @ normal(17, 3, 1) + shared
    # GIVEN_RIDGE leaves 3e-15 (slopes)^2 beside 1e-12 (slopes)^2: a correlation of 0.003 a pair.
    assert abs(F.gaussian_cmi(x.to(dtype), y.to(dtype), c.to(dtype))) <= 1e-4


def test_what_is_left_counts_in_full(backend: str) -> None:
    # A rest of 1e-3: 1e-6 in variance, beside a noise of 1e-12 (1 + slopes^2).
    c, e, f = (normal(18 + i, 5000, 1) for i in range(3))
    small = F.gaussian_cmi(c + 1e-3 * e, f + e, c)
    large = F.gaussian_cmi(c + e, f + e, c)
    assert abs(small - large) <= 1e-5
    # The difference of two terms near the cap loses that.
    x, y = c + 1e-5 * e, f + e
    difference = F.gaussian_mi(x, torch.cat([y, c], 1)) - F.gaussian_mi(x, c)
    assert abs(F.gaussian_cmi(x, y, c) - large) <= 0.1 * abs(difference - large)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 5, 8, 12])
def test_fewer_rows_than_columns(rows: int, dtype: torch.dtype, backend: str) -> None:
    for seed in range(5):
        parts = [
            normal(seed + i, rows, d).to(dtype).requires_grad_() for i, d in enumerate((3, 4, 5))
        ]
        value = F.gaussian_cmi(*parts)
        # c determines everything up to 6 rows; then x and y share up to three directions.
        free = min(max(rows - 6, 0), 3)
        assert -1e-6 <= value <= free * (CAP + 0.01) + 1e-3
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, parts))
        assert F.gaussian_copula_mi(*parts[:2], bias_correction=False).isfinite()
        assert F.gaussian_copula_cmi(*parts, bias_correction=False).isfinite()


@given(seeds, few, few, st.integers(1, 6), st.integers(2, 40), st.integers(0, 16), st.booleans())
def test_finite_when_columns_nearly_determine_each_other(
    seed: int, n: int, m: int, p: int, rows: int, digits: int, collinear: bool
) -> None:
    c = normal(seed, rows, p)
    if collinear:
        c[:, 1:] = c[:, :1] + 10.0**-digits * c[:, 1:]
    x, y = (c @ normal(seed + d, p, d) + 10.0**-digits * normal(seed + 9, rows, d) for d in (n, m))
    for dtype in (torch.float32, torch.float64):
        parts = [part.to(dtype).requires_grad_() for part in (x, y, c)]
        value = F.gaussian_cmi(*parts)
        assert -1e-4 <= value <= min(n, m) * (CAP + 0.01)
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, parts))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", range(3))
def test_nan_and_infinity(part: int, bad: float, backend: str) -> None:
    parts = dependent(19, 2, 1, 2)
    parts[part][7, 0] = bad
    for each in parts:
        each.requires_grad_()
    value = F.gaussian_cmi(*parts)
    assert value.isnan()
    assert all(g.isnan().all() for g in torch.autograd.grad(value, parts))


def test_nan_has_no_rank_but_infinity_has() -> None:
    parts = dependent(20, 2, 1, 2)
    expected = F.gaussian_copula_cmi(*parts)
    for part in parts:
        part[part[:, 0].argmax(), 0] = math.inf
        part[part[:, 0].argmin(), 0] = -math.inf
    assert F.gaussian_copula_cmi(*parts) == expected
    parts[1][[3, 8]] = math.nan
    with pytest.raises(ValueError, match=r"y holds NaN in 2 rows \(first: 3, 8\); remove"):
        F.gaussian_copula_mi(*parts[:2])
    with pytest.raises(ValueError, match="c holds NaN in 2 rows"):
        F.gaussian_copula_cmi(parts[0], parts[0], parts[1])
    with pytest.raises(ValueError, match="x holds NaN in 2 rows"):
        F.normal_scores(parts[1])


x, y, c = normal(0, 10, 2), normal(1, 10, 3), normal(2, 10, 1)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [
        (F.gaussian_cmi, (x, y, c[:, 0]), {}, r"c must have shape \[rows, columns\]"),
        (F.gaussian_cmi, (x, y, c[1:]), {}, "c has 9 rows but x has 10"),
        (F.gaussian_cmi, (x, y, c.float()), {}, "c is torch.float32 but x is torch.float64"),
        (F.gaussian_cmi, (x, y, c.long()), {}, "c must be float32"),
        (F.gaussian_cmi, (x, y, c[:, :0]), {}, "c has no columns"),
        (F.gaussian_cmi, (x, y, None), {}, "c must be a torch tensor"),
        (F.gaussian_cmi, (x[:1], y[:1], c[:1]), {}, "x has 1 rows; 2 are needed"),
        (F.gaussian_cmi, (x[:6], y[:6], c[:6]), {"bias_correction": True}, "x has 6 rows; 7 are"),
        (F.gaussian_cmi, (x, y, c), {"eps": 1.0}, "eps must lie in"),
        (F.gaussian_cmi, (x, y, c), {"weight": torch.ones(9)}, "weight must be a tensor"),
        (F.gaussian_cmi, (x, y, c), {"weight": torch.ones(10) / 6}, "weight sums to less than 2"),
        (
            F.gaussian_cmi_of,
            (F.moments(x, y),),
            {},
            "moments must be of three parts; these are of 2",
        ),
        (F.gaussian_copula_mi, (x, y[1:]), {}, "y has 9 rows but x has 10"),
        (F.gaussian_copula_mi, (x.long(), y.long()), {}, "x must be float32"),
        (F.gaussian_copula_mi, (x[:5], y[:5]), {}, "x has 5 rows; 6 are needed"),
        (F.gaussian_copula_mi, (x[:0], y[:0]), {"bias_correction": False}, "x has 0 rows; 2 are"),
        (F.gaussian_copula_cmi, (x[:6], y[:6], c[:6]), {}, "x has 6 rows; 7 are needed"),
        (F.gaussian_copula_cmi, (x, y, c[:, 0]), {}, r"c must have shape \[rows, columns\]"),
        (F.normal_scores, (x[:, 0],), {}, r"x must have shape \[rows, columns\]"),
    ],
)
def test_bad_arguments_are_named(function, arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)
