"""Distributions whose mutual information is known, in nats, and samples of them.

They are of the kinds of Czyż, Grabowski, Vogt, Beerenwinkel & Marx 2023, "Beyond Normal: On the
Evaluation of Mutual Information Estimators", NeurIPS, arXiv:2306.11078: a base distribution with an
analytic value, and injective maps of either side, which leave that as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, ndtr
from torch import Tensor

Array = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], tuple[Array, Array]]
Map = Callable[[Array], Array]

GAUSSIAN = frozenset({"gaussian", "copula"})
COPULA = frozenset({"copula"})


@dataclass(frozen=True)
class Distribution:
    """A joint distribution of x and y.

    Parameters
    ----------
    name : str
        Beginning with the columns of x and y.
    mi : float
        I(x; y) in nats.
    draw : callable
        Of the number of rows and a generator: x [n, d] and y [n, m].
    model_holds : frozenset of str
        Which of the estimators ``"gaussian"`` and ``"copula"`` assume what is true of it.
    """

    name: str
    mi: float
    draw: Sampler
    model_holds: frozenset[str] = frozenset()

    def sample(self, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw x and y as float64 tensors."""
        x, y = self.draw(rows, np.random.default_rng(seed))
        return torch.from_numpy(x), torch.from_numpy(y)

    def mapped(
        self, name: str, of_x: Map, of_y: Map, model_holds: frozenset[str] = frozenset()
    ) -> Distribution:
        """Map either side by an injective function."""

        def draw(rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
            x, y = self.draw(rows, rng)
            return of_x(x), of_y(y)

        return replace(self, name=name, draw=draw, model_holds=model_holds)


# ---- base distributions --------------------------------------------------------------------------


def dense(n: int, m: int, r: float) -> Array:
    """Correlations that all are r."""
    return r + (1 - r) * np.eye(n + m)


def sparse(n: int, m: int, pairs: int, r: float) -> Array:
    """Correlation r of the first columns of x with those of y, 0 otherwise."""
    matrix = np.eye(n + m)
    for i in range(pairs):
        matrix[i, n + i] = matrix[n + i, i] = r
    return matrix


def gaussian_value(correlation: Array, n: int) -> float:
    """I = 1/2 log(|R_x| |R_y| / |R|)."""
    blocks = (correlation[:n, :n], correlation[n:, n:], correlation)
    log_x, log_y, log_joint = (np.linalg.slogdet(block)[1] for block in blocks)
    return float(log_x + log_y - log_joint) / 2


def normal(name: str, correlation: Array, n: int) -> Distribution:
    root = np.linalg.cholesky(correlation)

    def draw(rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
        joint = rng.standard_normal((rows, len(root))) @ root.T
        return joint[:, :n], joint[:, n:]

    return Distribution(name, gaussian_value(correlation, n), draw, GAUSSIAN)


def student_value(dispersion: Array, n: int, dof: float) -> float:
    """Add to the Gaussian value what the common scale of all columns tells.

    Arellano-Valle, Contreras-Reyes & Genton 2013, Scand. J. Stat. 40:42.
    """
    m = len(dispersion) - n

    def term(nu: float) -> float:
        return float(gammaln(nu / 2) - nu / 2 * digamma(nu / 2))

    scale = term(dof) + term(dof + n + m) - term(dof + n) - term(dof + m)
    return gaussian_value(dispersion, n) + scale


def student(name: str, dispersion: Array, n: int, dof: float) -> Distribution:
    gaussian = normal(name, dispersion, n)

    def draw(rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = gaussian.draw(rows, rng)
        scale = np.sqrt(dof / rng.chisquare(dof, (rows, 1)))
        return scale * x, scale * y

    return Distribution(name, student_value(dispersion, n, dof), draw)


def uniform_noise(name: str, width: float) -> Distribution:
    """Y = x + noise, x uniform on [0, 1], noise on [-width, width]: the entropy of a trapezium."""

    def draw(rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.uniform(0, 1, (rows, 1))
        return x, x + rng.uniform(-width, width, (rows, 1))

    mi = width - math.log(2 * width) if width <= 0.5 else 1 / (4 * width)
    return Distribution(name, mi, draw)


def independent_uniform(name: str, n: int, m: int) -> Distribution:
    def draw(rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
        return rng.uniform(size=(rows, n)), rng.uniform(size=(rows, m))

    return Distribution(name, 0.0, draw, GAUSSIAN)


# ---- injective maps ------------------------------------------------------------------------------


def half_cube(x: Array) -> Array:
    """Lengthen the tails."""
    return x * np.sqrt(np.abs(x))


def wiggly(x: Array) -> Array:
    """Wave; strictly increasing, because 0.4 + 0.2 * 1.7 + 0.03 * 3.3 < 1."""
    return x + 0.4 * np.sin(x) + 0.2 * np.sin(1.7 * x + 1) + 0.03 * np.sin(3.3 * x - 2.5)


def bimodal(x: Array) -> Array:
    """Part a standard normal variable in two: the quantiles of a mixture of N(±2, 0.5²)."""
    grid = np.linspace(-8, 8, 100_001)
    levels = (0.5 * ndtr((grid + 2) / 0.5) + 0.5 * ndtr((grid - 2) / 0.5)).clip(1e-300, 1 - 1e-16)
    increasing = np.concatenate([[True], np.diff(levels) > 0])
    return np.interp(ndtr(x), levels[increasing], grid[increasing])


def swiss_roll(x: Array) -> Array:
    """Roll [0, 1] up in the plane."""
    t = 1.5 * math.pi * (1 + 2 * x)
    return np.hstack([t * np.cos(t), t * np.sin(t)]) / 21


def rotation(d: int, seed: int) -> Map:
    matrix = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return lambda x: x @ matrix


def spiral(first: int, second: int, speed: float) -> Map:
    """Rotate x in the plane of two columns by an angle of speed |x|²."""

    def rotate(x: Array) -> Array:
        angle = speed * np.square(x).sum(1)
        rotated = x.copy()
        rotated[:, first] = np.cos(angle) * x[:, first] - np.sin(angle) * x[:, second]
        rotated[:, second] = np.sin(angle) * x[:, first] + np.cos(angle) * x[:, second]
        return rotated

    return rotate


def _all() -> tuple[Distribution, ...]:
    pair = normal("1+1 normal, r = 0.75", dense(1, 1, 0.75), 1)
    three = normal("3+3 normal, 2 pairs", sparse(3, 3, 2, 0.8), 3)
    five = normal("5+5 normal, 2 pairs", sparse(5, 5, 2, 0.8), 5)
    cauchy = student("2+2 Student, 1 dof", dense(2, 2, 0.5), 2, dof=1)
    return (
        independent_uniform("2+2 independent", 2, 2),
        pair,
        normal("2+2 normal, all r = 0.5", dense(2, 2, 0.5), 2),
        five,
        five.mapped("5+5 the same, rotated", rotation(5, 1), rotation(5, 2), GAUSSIAN),
        normal("16+2 normal, 2 pairs", sparse(16, 2, 2, 0.8), 16),
        pair.mapped("1+1 normal, half-cube", half_cube, half_cube, COPULA),
        pair.mapped("1+1 normal, wiggly", wiggly, wiggly, COPULA),
        pair.mapped("1+1 normal, bimodal", bimodal, bimodal, COPULA),
        pair.mapped("2+1 normal, Swiss roll", lambda x: swiss_roll(ndtr(x)), ndtr),
        three.mapped("3+3 normal, spiral", spiral(0, 1, 1 / 3), spiral(1, 2, 1 / 3)),
        uniform_noise("1+1 uniform noise 0.1", 0.1),
        uniform_noise("1+1 uniform noise 0.75", 0.75),
        student("2+2 Student, 3 dof, r = 0", np.eye(4), 2, dof=3),
        student("2+2 Student, 3 dof, r = 0.5", dense(2, 2, 0.5), 2, dof=3),
        cauchy.mapped("2+2 Student, 1 dof, asinh", np.arcsinh, np.arcsinh),
    )


DISTRIBUTIONS = _all()
