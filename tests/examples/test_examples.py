"""The examples against the formulas of their papers, and what their tables show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial, reduce
from operator import add
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # examples are not installed
from examples import barlow_twins, coding_rate, fairness, micro_batches, vicreg
from stib_fast import functional as F
from stib_fast.nn import InvarianceCritic

ROOT = Path(__file__).parents[2]
EPS = 0.5
# float64 on both sides; sums of 300 rows in another order, through a d x d step of condition
# 1 + d / eps² · 4 < 200, or a subtraction that keeps three digits: 1e-16 · 200 · sqrt(300).
TOLERANCE = 1e-12
Loss = Callable[[Tensor, Tensor], Tensor]


def two_views(rows: int = 300, d: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Correlated columns with means of their own; the second view is near the first."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    z = torch.randn(rows, d, generator=generator, dtype=torch.float64) @ mixing + 0.5
    near = z + 0.1 * torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return [z.to(dtype), near.to(dtype)]


def with_gradients(function: Callable[..., Tensor], *parts: Tensor) -> list[Tensor]:
    parts = tuple(part.clone().requires_grad_() for part in parts)
    value = function(*parts)
    return [value.detach(), *torch.autograd.grad(value, parts)]


def check(ours: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
        assert other.norm() > 1e-6  # there is something to compare


# ---- coding rate ---------------------------------------------------------------------------------


def published_rate(z: Tensor, membership: Tensor | None = None) -> Tensor:
    """R, or with memberships R_c, as the paper writes them: Z is d x m there, Π_j diagonal."""
    (m, d), eye = z.shape, torch.eye(z.shape[1], dtype=z.dtype)
    if membership is None:
        return 0.5 * torch.logdet(eye + d / (m * EPS**2) * z.T @ z)
    rate = torch.zeros((), dtype=z.dtype)
    for pi in membership.T:
        inner = eye + d / (pi.sum() * EPS**2) * z.T @ torch.diag(pi) @ z
        rate = rate + pi.sum() / (2 * m) * torch.logdet(inner)
    return rate


def memberships(z: Tensor) -> dict[str, Tensor]:
    """That follow z: ΔR of random ones is a difference with few digits left."""
    hard = nn.functional.one_hot(z[:, :3].argmax(1), 3).double()
    return {"hard": hard, "soft": (3 * z[:, :4]).softmax(1)}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_rate_reduction_is_the_published_one(kind: str, backend: str) -> None:
    z = two_views()[0]
    membership = memberships(z)[kind]
    check(
        with_gradients(
            lambda z: coding_rate.rate_reduction(coding_rate.class_moments(z, membership), EPS), z
        ),
        with_gradients(lambda z: published_rate(z) - published_rate(z, membership), z),
    )


def test_slices_and_chunks_are_the_same(backend: str) -> None:
    z = two_views()[0]
    membership = memberships(z)["hard"]
    label = membership.argmax(1)

    def in_slices(z: Tensor) -> Tensor:
        return coding_rate.rate_reduction([F.moments(z[label == j]) for j in range(3)], EPS)

    def in_chunks(z: Tensor) -> Tensor:
        chunks = [
            coding_rate.class_moments(a, b)
            for a, b in zip(z.split([7, 193, 100]), membership.split([7, 193, 100]), strict=True)
        ]
        return coding_rate.rate_reduction(
            [reduce(add, one) for one in zip(*chunks, strict=True)], EPS
        )

    expected = with_gradients(lambda z: published_rate(z) - published_rate(z, membership), z)
    check(with_gradients(in_slices, z), expected)
    check(with_gradients(in_chunks, z), expected)


def test_simdino_takes_the_covariance(backend: str) -> None:
    z = two_views()[0]

    def published(z: Tensor) -> Tensor:
        gamma = torch.cov(z.T, correction=0)
        return 0.5 * torch.logdet(torch.eye(6).double() + 6 / EPS**2 * gamma)

    ours = with_gradients(lambda z: coding_rate.coding_rate(F.moments(z), EPS, centred=True), z)
    check(ours, with_gradients(published, z))
    assert abs(ours[0] - published_rate(z)) > 0.01  # the mean makes a difference here


def test_an_empty_class_changes_nothing() -> None:
    z = two_views()[0]
    membership = memberships(z)["hard"]
    with_empty = torch.cat([membership, torch.zeros(300, 1)], 1)

    def reduction(z: Tensor, membership: Tensor) -> Tensor:
        return coding_rate.rate_reduction(coding_rate.class_moments(z, membership))

    check(*(with_gradients(partial(reduction, membership=m), z) for m in (membership, with_empty)))


def test_training_by_rate_reduction_separates_the_classes() -> None:
    found = coding_rate.main(steps=150)
    assert found["rate_end"] > found["rate_start"] + 1
    assert found["between_start"] > 0.5 > 0.25 > found["between_end"]
    assert found["within_end"] > found["between_end"] + 0.3


# ---- VICReg and Barlow Twins ---------------------------------------------------------------------


def published_vicreg(z: Tensor, z_prime: Tensor) -> Tensor:
    """Eq. (1) to (6), λ = μ = 25 and ν = 1, written over rows."""
    n, d = z.shape
    loss = 25 * (z - z_prime).square().sum(1).mean()
    for part in (z, z_prime):
        deviation = (part.var(0, correction=1) + 1e-4).sqrt()
        loss = loss + 25 * (1 - deviation).clamp(min=0).mean()
        centred = part - part.mean(0)
        covariance = centred.T @ centred / (n - 1)
        loss = loss + covariance[~torch.eye(d, dtype=torch.bool)].square().sum() / d
    return loss


def published_barlow_twins(z: Tensor, z_prime: Tensor) -> Tensor:
    """Eq. (1) and (2), λ = 0.005."""
    z, z_prime = z - z.mean(0), z_prime - z_prime.mean(0)
    norms = z.square().sum(0).sqrt()[:, None] * z_prime.square().sum(0).sqrt()
    c = z.T @ z_prime / norms
    others = c[~torch.eye(len(c), dtype=torch.bool)]
    return (1 - c.diagonal()).square().sum() + 5e-3 * others.square().sum()


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "vicreg": (lambda a, b: vicreg.vicreg(F.moments(a, b)), published_vicreg),
    "barlow_twins": (
        lambda a, b: barlow_twins.barlow_twins(F.moments(a, b)),
        published_barlow_twins,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_moments_is_the_published_one(name: str, backend: str) -> None:
    ours, published = (with_gradients(loss, *two_views()) for loss in LOSSES[name])
    check(ours, published)


# Rows of gradients are written in float32, 2⁻²⁴ an entry. VICReg's invariance term takes one view's
# rows from the other's, a tenth of them here: ten times that.
@pytest.mark.parametrize(("name", "tolerance"), [("vicreg", 1.2e-6), ("barlow_twins", 2.4e-7)])
def test_float32_features_keep_their_digits(name: str, tolerance: float) -> None:
    """At 100 standard deviations from 0: our products are in float64, theirs in float32."""
    z, z_prime = (part.float() + 100 for part in two_views(rows=20_000))
    ours, published = LOSSES[name]
    exact = with_gradients(published, z.double(), z_prime.double())
    found = with_gradients(ours, z, z_prime)
    theirs = with_gradients(published, z, z_prime)
    check([part.double() for part in found], exact, tolerance)
    assert (theirs[1] - exact[1]).norm() > 2 * tolerance * exact[1].norm()


def test_which_standard_deviation_does_not_matter() -> None:
    z, z_prime = two_views()
    c = barlow_twins.cross_correlation(F.moments(z, z_prime))
    for correction, factor in ((0, 1.0), (1, 299 / 300)):  # BatchNorm1d; the paper's pseudocode
        a, b = ((p - p.mean(0)) / p.std(0, correction=correction) for p in (z, z_prime))
        torch.testing.assert_close(a.T @ b / 300, factor * c, rtol=0, atol=1e-13)
    check(
        with_gradients(barlow_twins.in_rows, z, z_prime),
        with_gradients(published_barlow_twins, z, z_prime),
    )


def test_vicreg_needs_each_of_its_terms() -> None:
    found = vicreg.main(steps=100)
    variance, covariance = 1, 2
    assert found["λ s"][variance] > 1.8  # collapsed: both branches are a point
    assert found["λ s + μ v"][variance] < 0.1
    assert found["λ s + μ v + ν c"][covariance] < found["λ s + μ v"][covariance] / 2
    assert found["λ s + μ v + ν c"][3] > found["λ s + μ v"][3] > found["λ s"][3]


def test_barlow_twins_trains_and_keeps_its_digits() -> None:
    found = barlow_twins.main(steps=100)
    assert found["loss_100"] < found["loss_0"] / 3
    assert found["others_100"] < 0.15 < 0.9 < found["diagonal_100"]
    for offset in (0, 10, 100):
        assert found[f"error_{offset}"] < 2e-7 < found[f"rows_error_{offset}"]


def spread_worker(rank: int, folder: str) -> None:
    """Uneven parts of a batch on two processes; gradients averaged as DDP averages them."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        group, mine = dist.group.WORLD, (slice(0, 100), slice(100, 300))[rank]
        views, weight = two_views(), torch.eye(6).double()

        def whole(w: Tensor, published: Callable[..., Tensor]) -> Tensor:
            return published(*(z @ w for z in views))

        def share(w: Tensor, of_moments: Callable[..., Tensor]) -> Tensor:
            return of_moments(F.moments(*(z[mine] @ w for z in views)).gathered(group))

        for of_moments, (_, published) in (
            (vicreg.vicreg, LOSSES["vicreg"]),
            (barlow_twins.barlow_twins, LOSSES["barlow_twins"]),
        ):
            expected = with_gradients(partial(whole, published=published), weight)
            value, gradient = with_gradients(partial(share, of_moments=of_moments), weight)
            dist.all_reduce(gradient)
            check([value, gradient / 2], expected)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_gathered_moments_give_the_losses_of_the_global_batch(tmp_path: Path) -> None:
    mp.spawn(spread_worker, (str(tmp_path),), nprocs=2)


# ---- micro-batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
@pytest.mark.parametrize("rows", [64, 50])  # 50: the last one is smaller
def test_micro_batches_give_the_gradients_of_the_batch(dtype, tolerance, rows) -> None:
    x = torch.randn(320, 4, dtype=dtype)
    y = x[:, :1] + torch.randn(320, 1, dtype=dtype)
    found = []
    for backward in (micro_batches.backward_in_micro_batches, micro_batches.backward_at_once):
        encoder = micro_batches.encoder_with_dropout(width=32).to(dtype)
        torch.manual_seed(7)
        value = backward(encoder, x, y, rows, weight=-2.0)
        found.append([value, *(p.grad for p in encoder.parameters())][:-1])
        assert encoder[-1].bias.grad.norm() < 100 * tolerance  # it moves nothing: rounding
        found[-1].append(torch.rand(5))  # and the random numbers go on from the same place
    check(*found, tolerance=tolerance)


def test_without_the_replayed_dropout_the_gradients_are_others(monkeypatch) -> None:
    x = torch.randn(320, 4)
    y = x[:, :1] + torch.randn(320, 1)
    found = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
        encoder = micro_batches.encoder_with_dropout(width=32)
        torch.Generator.manual_seed(torch.default_generator, 7)
        micro_batches.backward_in_micro_batches(encoder, x, y, 64)
        found.append(encoder[0].weight.grad)
    assert (found[0] - found[1]).norm() > 0.01 * found[0].norm()


def test_micro_batches_keep_a_fraction_of_the_activations() -> None:
    found = micro_batches.main(batch=8192, rows=256)
    assert found["error"] < 1e-6
    # Kept of each of two layers of 512: the SiLU's input, the scaled mask, the output.
    expected = 2 * 8192 * 512 * 3 * 4 / 1e6
    assert expected < found["at_once"] < 1.1 * expected
    assert found["in_parts"] < found["at_once"] / 30


# ---- the critic ----------------------------------------------------------------------------------


def test_the_optimum_of_the_made_up_table() -> None:
    assert fairness.optimum(0) == pytest.approx((0.25, 0.2218), abs=1e-4)  # ½ log2(1.36)
    assert fairness.optimum(1e6) == pytest.approx((0.61, 0.0), abs=1e-6)
    # A search over linear predictions α s + k a, with weight 5.
    alpha, k = torch.meshgrid(
        torch.linspace(0.5, 1.5, 501), torch.linspace(0, 1, 501), indexing="ij"
    )
    error = 0.25 + (1 - alpha) ** 2 + (0.6 - k) ** 2
    nats = torch.log1p((k / alpha) ** 2) / 2
    best = (error + 5 * nats).argmin()
    expected = error.flatten()[best], nats.flatten()[best] / torch.tensor(2.0).log()
    assert fairness.optimum(5) == pytest.approx([float(e) for e in expected], abs=2e-3)


def test_age_leaves_the_representation_at_a_small_price() -> None:
    found = fairness.main(weights=(0, 5))
    without, with_critic = found[0], found[5]
    error, bits = fairness.optimum(5)
    # 5,000 rows: the error is known to 2 %, and k-NN reads independence as 0 to about 0.02 bits.
    assert without["mse"] < 0.25 * 1.1
    assert without["r2"] > 0.3
    assert without["bits"] > 1
    assert with_critic["mse"] < error * 1.15
    assert with_critic["r2"] < 0.02
    assert with_critic["bits"] < bits + 0.05


def test_the_lightning_module_trains() -> None:
    from examples import lightning_module

    found = lightning_module.main(max_epochs=4, rows=50_000)
    assert found[0.0][1] > 1
    assert found[2.0][0] < 0.25 * 1.25
    assert found[2.0][1] < 0.1


def test_lightning_under_ddp_takes_the_step_of_the_global_batch() -> None:
    """Two steps of SGD on 128 rows: in one process, and 64 in each of two."""
    import lightning
    from torch.utils.data import DataLoader

    from examples import lightning_module

    # A fork starts without importing everything again, but not where CUDA is in use.
    strategy = "ddp_spawn" if torch.cuda.is_available() else "ddp_fork"
    after = []
    for processes in (1, 2):
        lightning.seed_everything(0, verbose=False)
        model = lightning_module.InvariantRegressor(columns=2).double()
        model.encoder[1] = nn.Identity()  # noise is each process's own
        # Eight smooth features of one variable are nearly collinear: that would multiply rounding.
        model.critic = InvarianceCritic(2, 1, feature_dim=2, hidden=(64,)).double()
        model.configure_optimizers = partial(sgd, model)  # Adam's first steps are signs
        rows = lightning_module.table(128, seed=1)
        rows.tensors = tuple(part.double() for part in rows.tensors)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy=strategy if processes > 1 else "auto",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(rows, 128 // processes))
        after.append([p.detach() for p in model.parameters()])
    # Steps of the critic are gradients through a 4 x 4 matrix of condition below 1e6.
    for one, other in zip(*after, strict=True):
        assert (one - other).norm() <= 1e-9 * other.norm()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_stib_fast_does_not_import_lightning() -> None:
    code = (
        "import sys, stib_fast, stib_fast.nn, stib_fast.cli, stib_fast.training\n"
        "assert not any('lightning' in name for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_each_is_short_and_listed(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 120
    assert f"python examples/{path.name}" in source
    assert path.name in (ROOT / "examples/README.md").read_text()
