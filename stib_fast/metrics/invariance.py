"""What the invariant latent part Z0 still knows about Y, in several forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stib_fast.functional import knn_mi
from stib_fast.metrics.probes import probe_r2

ACTIVE_NATS = 0.01
NEGLIGIBLE_VARIANCE = 1e-12
# Data drawn from a generator of a small seed must not meet its own numbers again as noise.
NOISE_SEED = 1_570_000_000


def invariance(
    mu: Tensor, log_sigma: Tensor, y: Tensor, *, k: int = 20, seed: int = 0
) -> dict[str, float | int | None]:
    """Measure how much of Y is left in the Gaussian code Z0 ~ N(mu, sigma²).

    The paper reports ``mi_bits`` alone. That figure depends on the scale of Z0 and can be near 0
    although Y is recovered exactly from Z0; the other figures cannot.

    Parameters
    ----------
    mu : Tensor
        ``[n, d]`` posterior means of Z0, real floating dtype, ``n > max(k, 9)``.
    log_sigma : Tensor
        Natural logarithm of the posterior standard deviations, ``[d]`` (shared by all samples) or
        ``[n, d]``.
    y : Tensor
        ``[n, m]`` targets, used in their own scale; no constant column.
    k : int
        Neighbours of the mutual-information estimate (:func:`stib_fast.functional.knn_mi`).
    seed : int
        Seed of the draw from the posterior, of the jitter and of the probes' folds.

    Returns
    -------
    dict
        - ``mi_bits``: I(mu; Y) in mu's own scale, the paper's figure;
        - ``mi_bits_sampled``: I(z0; Y) with z0 drawn from N(mu, sigma²);
        - ``mi_bits_whitened``: I(mu; Y) after mu is whitened, which leaves the true value as it is;
        - ``mi_bits_whitened_active``: the same over the active units alone;
        - ``active_units``: number of dimensions whose mean KL from N(0, 1) exceeds 0.01 nats;
        - ``probe_r2_sampled``: cross-validated R² of Y from z0 (:func:`probe_r2`);
        - ``probe_r2_active``: the same from the whitened active units.

        Mutual information is in bits and may be slightly negative. The two figures on active units
        are None when no unit is active. A mu (or its active part) without any variance carries no
        information: its whitened figures and its R² are 0.

    Raises
    ------
    ValueError
        For shapes that do not agree, NaN or infinite entries, a dtype that is not real floating,
        k outside its range, fewer than 10 rows or a constant column of ``y``.

    Examples
    --------
    >>> noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> figures = invariance(noise[:, :1], torch.tensor([-2.0]), noise[:, 1:])
    >>> figures["active_units"], abs(figures["mi_bits"]) < 0.1
    (1, True)
    """
    _check(mu, log_sigma, y)
    mu, y = mu.detach().cpu().double(), y.detach().cpu().double()
    log_sigma = log_sigma.detach().cpu().double().expand_as(mu)
    z0 = posterior_draw(mu, log_sigma, seed)
    active = _kl_per_unit(mu, log_sigma) > ACTIVE_NATS
    figures: dict[str, float | int | None] = {
        "mi_bits": _mi_bits(mu, y, k, seed),
        "mi_bits_sampled": _mi_bits(z0, y, k, seed),
        "mi_bits_whitened": _mi_bits(_whitened(mu), y, k, seed),
        "mi_bits_whitened_active": None,
        "active_units": int(active.sum()),
        "probe_r2_sampled": probe_r2(z0, y, seed=seed),
        "probe_r2_active": None,
    }
    if active.any():
        active_mu = _whitened(mu[:, active])
        figures["mi_bits_whitened_active"] = _mi_bits(active_mu, y, k, seed)
        figures["probe_r2_active"] = probe_r2(active_mu, y, seed=seed) if active_mu.numel() else 0.0
    return figures


def posterior_draw(mu: Tensor, log_sigma: Tensor, seed: int = 0) -> Tensor:
    """Draw from N(mu, sigma²), always the same draw for a seed: [n, d] float64 on the CPU.

    Parameters
    ----------
    mu : Tensor
        [n, d].
    log_sigma : Tensor
        [d] or [n, d].
    seed : int

    Examples
    --------
    >>> draw = posterior_draw(torch.zeros(10_000, 1), torch.tensor([-1.0]))
    >>> abs(draw.std().log().item() + 1) < 0.05
    True
    """
    generator = torch.Generator().manual_seed(NOISE_SEED + seed)
    noise = torch.randn(mu.shape, generator=generator, dtype=torch.float64)
    return mu.detach().cpu() + log_sigma.detach().cpu().double().exp() * noise


def _check(mu: Tensor, log_sigma: Tensor, y: Tensor) -> None:
    for name, value in {"mu": mu, "log_sigma": log_sigma, "y": y}.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} must have a real floating dtype, got {value.dtype}; cast it")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity; the model may have diverged")
    if mu.ndim != 2 or mu.numel() == 0:
        raise ValueError(f"mu must be a non-empty [n, d] tensor, got {tuple(mu.shape)}")
    if log_sigma.shape not in (mu.shape, mu.shape[1:]):
        raise ValueError(
            f"log_sigma must be [d] or [n, d] like mu {tuple(mu.shape)}, "
            f"got {tuple(log_sigma.shape)}"
        )
    if len(y) != len(mu):
        raise ValueError(f"y must have as many rows as mu, got {len(y)} and {len(mu)}")


def _kl_per_unit(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma²) ‖ N(0, 1)) in nats per dimension, mean over samples."""
    return ((mu**2 + (2 * log_sigma).exp() - 1) / 2 - log_sigma).mean(dim=0)


def _whitened(mu: Tensor) -> Tensor:
    """Principal components scaled to unit variance, negligible ones left out."""
    centred = mu - mu[0]  # exactly 0 for a constant column, which subtracting the mean is not
    centred -= centred.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = (s > 0) & (s**2 >= NEGLIGIBLE_VARIANCE * s[0] ** 2)
    whitened: Tensor = u[:, kept] * math.sqrt(len(mu) - 1)
    return whitened


def _mi_bits(features: Tensor, y: Tensor, k: int, seed: int) -> float:
    if features.numel() == 0:
        return 0.0
    return float(knn_mi(features, y, k, seed=seed)) / math.log(2)
