"""Time a training step of STIB, L1 and L2 on one batch, and show where the time goes.

The model is the authors' (two hidden layers of 256, softplus, two features a side of the critic).
Baselines are what a user would write: *plain* (two losses, two Adams), *best* (critic frozen in L1,
h(Y) without a graph there, fused Adam), both with the careful float32 mutual information; and the
*matrix products* of the joint pass alone, which no rewriting of the rest can beat.

    python -m benchmarks.training_step [--batches 60 1024 16384] [--threads 1 2] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast.data import sample
from stib_fast.models import STIB, vector_stib
from stib_fast.training import Execution, Optimisation
from stib_fast.training.step import TrainingStep

BACKEND = "cpp"
HIDDEN = (256, 256)
FEATURES = 2
INVARIANCE_WEIGHT = 800.0
LAMBDA = 0.7
LEARNING_RATE = 1e-4
SETTINGS = Optimisation(
    learning_rate=LEARNING_RATE,
    learning_rate_end=1.0,
    invariance_weight=INVARIANCE_WEIGHT,
    lambda_start=LAMBDA,
    lambda_growth=1.0,
)
Step = Callable[[Tensor, Tensor], object]

# Names of the profiler, in the order in which they are looked for.
GROUPS = {
    "products": ("aten::mm", "aten::addmm"),
    "activations": ("aten::softplus", "aten::softplus_backward"),
    "mutual information": ("stib_fast::gaussian_mi", "stib_fast::gaussian_mi_backward"),
    "Adam": ("aten::_fused_adam_", "Optimizer.step#Adam.step"),
}


def new_model() -> STIB:
    torch.manual_seed(0)
    return vector_stib(
        2, 2, 2, 1, feature_dim=FEATURES, hidden=HIDDEN, activation="softplus",
        encoder_bias=False, glorot=True, cycle_weight=0.005,
    )  # fmt: skip


def careful_mi(z: Tensor, y: Tensor) -> Tensor:
    """What a careful user writes: centre, one product, normalise the matrix, Cholesky."""
    n = z.shape[1]
    x = torch.cat([z, y], 1)
    x = x - x.mean(0)
    scatter = x.mT @ x
    scale = scatter.diagonal().rsqrt()
    r = scatter * scale * scale[:, None] + 1e-6 * torch.eye(len(scatter), device=z.device)

    def log_det(matrix: Tensor) -> Tensor:
        return 2 * torch.linalg.cholesky(matrix).diagonal().log().sum()

    return (log_det(r[:n, :n]) + log_det(r[n:, n:]) - log_det(r)) / 2


def eager_step(model: STIB, best: bool) -> Step:
    """Two losses and two optimisers, one after the other on the same draw of z."""
    critic = model.critic
    adversary = list(critic.parameters())
    main = [p for name, p in model.named_parameters() if not name.startswith("critic.")]
    first, second = (torch.optim.Adam(p, LEARNING_RATE, fused=best) for p in (main, adversary))

    def step(x: Tensor, y: Tensor) -> None:
        mean = model.encoder(x)
        z = model.sample(mean)
        z0, z1 = model.split(z)
        variance = (2 * model.log_sigma).exp()
        kl = ((mean.square() + variance) / 2 - model.log_sigma - 0.5).sum(1).mean()
        x_loss = (model.decoder(z) - x).square().sum(1).mean()
        y_loss = (model.predictor(z1) - y).square().sum(1).mean()
        for p in adversary:
            p.requires_grad_(not best)
        mi = careful_mi(critic.critic(z0), critic.h(y))
        l1 = kl + LAMBDA * (x_loss + y_loss + INVARIANCE_WEIGHT * mi)
        first.zero_grad()
        l1.backward()
        first.step()
        for p in adversary:
            p.requires_grad_(True)
        features = critic.h(y)
        cycle = (critic.h_inverse(features) - y).square().sum(1).mean()
        l2 = 0.005 * cycle - careful_mi(critic.critic(z0.detach()), features)
        second.zero_grad()
        l2.backward()
        second.step()

    return step


def ours_step(model: STIB, execution: Execution) -> Step:
    take, numbers = TrainingStep(model, SETTINGS, execution), count()
    return lambda x, y: take((x, y), next(numbers))


def products_step(model: STIB) -> Step:
    """The products of one forward and backward pass through the six networks, and nothing else."""
    layers = [
        [sizes.weight.detach() for sizes in network.modules() if isinstance(sizes, torch.nn.Linear)]
        for network in (
            model.encoder, model.decoder, model.predictor,
            model.critic.critic, model.critic.h, model.critic.h_inverse,
        )
    ]  # fmt: skip
    data = {id(network[0]) for network in (layers[0], layers[4])}  # their inputs need no gradient

    def step(x: Tensor, y: Tensor) -> None:
        rows = len(x)
        for network in layers:
            for weight in network:
                into, out = inputs[rows][weight.shape[1]], inputs[rows][weight.shape[0]]
                into @ weight.mT
                out.mT @ into
                if id(weight) not in data:
                    out @ weight

    widths = {size for network in layers for weight in network for size in weight.shape}

    class Inputs(dict[int, dict[int, Tensor]]):
        def __missing__(self, rows: int) -> dict[int, Tensor]:
            self[rows] = {width: torch.randn(rows, width) for width in widths}
            return self[rows]

    inputs = Inputs()
    return step


BASELINES: dict[str, Callable[[STIB], Step]] = {
    "best eager": lambda model: eager_step(model, best=True),
    "best eager compiled": lambda model: torch.compile(eager_step(model, best=True)),
    "plain eager": lambda model: eager_step(model, best=False),
}
PROVIDERS: dict[str, Callable[[STIB], Step]] = {
    "ours": lambda model: ours_step(model, Execution("cpu")),
    **BASELINES,
    "matrix products alone": products_step,
}


def same_gradients(device: Literal["cpu", "cuda"] = "cpu") -> None:
    """Refuse to time anything unless our joint pass moves the model as two separate losses do."""
    x, y, _ = sample(4096, generator=torch.Generator(device).manual_seed(1))
    models = []
    for make in (lambda model: ours_step(model, Execution(device)), BASELINES["best eager"]):
        model = new_model().to(device)
        step = make(model)
        torch.manual_seed(2)
        step(x, y)
        models.append(dict(model.named_parameters()))
    start = dict(new_model().to(device).named_parameters())
    moved = torch.cat([(models[0][name] - start[name]).flatten().sign() for name in start])
    other = torch.cat([(models[1][name] - start[name]).flatten().sign() for name in start])
    # Adam's first step is the sign of the gradient: float32 rounding turns only the smallest.
    agreement = float((moved == other).float().mean())
    if agreement < 0.99:
        raise harness.Disagreement(f"gradient signs agree in {agreement:.1%} of the parameters")


def measure(batch: int, repetitions: int) -> Iterator[harness.Row]:
    generator = torch.Generator().manual_seed(0)
    size = min(64, harness.rotation_size(16 * batch))
    sets = [sample(batch, generator=generator)[:2] for _ in range(size)]
    torch._dynamo.reset()
    timings = harness.interleaved(
        {name: make(new_model()) for name, make in PROVIDERS.items()}, sets, repetitions
    )
    for name, timing in timings.items():
        yield {
            "batch": batch,
            "threads": torch.get_num_threads(),
            "provider": name,
            "ms": timing.median * 1e3,
            "ms_20": timing.low * 1e3,
            "ms_80": timing.high * 1e3,
            "over_best_eager": timings["best eager"].median / timing.median,
            "times_products": timing.median / timings["matrix products alone"].median,
        }


def where_the_time_goes(batch: int) -> dict[str, float]:
    """Milliseconds a step of each group of operators, by the profiler's own time."""
    x, y, _ = sample(batch)
    step = PROVIDERS["ours"](new_model())
    repetitions = 10
    for _ in range(3):
        step(x, y)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(repetitions):
            step(x, y)
    spent = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in trace.key_averages():
        group = next((g for g, names in GROUPS.items() if event.key in names), "everything else")
        spent[group] += event.self_cpu_time_total / 1e3 / repetitions
    return spent


TABLE: dict[str, Callable[[Any], str]] = {
    "provider": str,
    "ms": "{:.3g}".format,
    "ms_20": "{:.3g}".format,
    "ms_80": "{:.3g}".format,
    "over_best_eager": "{:.2f}x".format,
    "times_products": "{:.2f}".format,
}


def case(row: harness.Row) -> str:
    return f"B={row['batch']}, {row['threads']} threads"


def figure_of(rows: Sequence[harness.Row], spent: dict[str, dict[str, float]]) -> Figure:
    """Draw the times of each provider, and the parts of our step beside them."""
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for provider in PROVIDERS:
        chosen = [row for row in rows if row["provider"] == provider]
        left.plot(
            [case(row) for row in chosen],
            [row["ms"] for row in chosen],
            "_",
            ms=14,
            mew=2.5,
            label=provider,
        )
    left.set_yscale("log")
    left.set_ylabel("training step, ms (median)")
    left.tick_params(axis="x", labelrotation=30)
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    bottom = dict.fromkeys(spent, 0.0)
    for group in next(iter(spent.values())):
        shares = [100 * parts[group] / sum(parts.values()) for parts in spent.values()]
        right.bar(list(spent), shares, bottom=list(bottom.values()), label=group)
        bottom = {name: b + s for (name, b), s in zip(bottom.items(), shares, strict=True)}
    right.set_ylabel("share of our step, %")
    right.tick_params(axis="x", labelrotation=30)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    parser = harness.arguments("Time a training step of STIB against what a user would write.")
    parser.add_argument("--batches", type=int, nargs="+", default=None, metavar="B")
    options = parser.parse_args()
    batches = options.batches or ([60] if options.quick else [60, 1024, 16384])
    rows: list[harness.Row] = []
    spent: dict[str, dict[str, float]] = {}
    machines = {}
    with harness.exactly_backend(BACKEND):
        same_gradients()
        for thread_count in options.threads:
            with harness.threads(thread_count):
                machines[thread_count] = harness.measure_machine()
                for batch in batches:
                    new = list(measure(batch, 3 if options.quick else 15))
                    rows += new
                    parts = where_the_time_goes(batch)
                    spent[case(new[0])] = parts
                    print(f"\n{case(new[0])}\n\n{harness.markdown(new, TABLE)}\n", flush=True)
                    shares = (
                        f"{name} {ms:.2f} ms ({ms / sum(parts.values()):.0%})"
                        for name, ms in parts.items()
                    )
                    print("ours, by the profiler: " + ", ".join(shares), flush=True)
    lost = harness.losses(rows, "ours", BASELINES, case)
    print("\nFaster than ours:", *(lost or ["none"]), sep="\n- ")
    record = harness.environment() | {
        "machine": {n: machine.record() for n, machine in machines.items()},
        "milliseconds_of_our_step": spent,
    }
    harness.write(options.out, "training_step", rows, record, figure_of(rows, spent))


if __name__ == "__main__":
    main()
