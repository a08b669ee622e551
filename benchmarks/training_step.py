"""A training step of STIB, L1 and L2 on one batch, against what a user would write.

The model is the authors' (two hidden layers of 256, softplus, two features a side of the critic);
shapes are numbers of rows in a batch. Baselines: *plain* (two losses, two Adams), *best* (critic
frozen in L1, h(Y) without a graph there, fused Adam), both with the careful float32 mutual
information; and the *matrix products* of the joint pass alone, which no rewriting of the rest can
beat. On a CPU the profiler tells where the time of ours goes.

On a GPU ours runs op by op, compiled, replayed as a CUDA graph, and both; and replayed with matrix
products in bfloat16. Batches lie there already. What does not fit into memory is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast.data import sample
from stib_fast.models import STIB, vector_stib
from stib_fast.training import Execution, Optimisation
from stib_fast.training.step import WARM_UP, TrainingStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
PARTS = (*GROUPS, "everything else")


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
            self[rows] = {n: torch.randn(rows, n, device=model.log_sigma.device) for n in widths}
            return self[rows]

    inputs = Inputs()
    return step


BASELINES: dict[str, Callable[[STIB], Step]] = {
    "best eager": lambda model: eager_step(model, best=True),
    "best eager compiled": lambda model: torch.compile(eager_step(model, best=True)),
    "plain eager": lambda model: eager_step(model, best=False),
}
FORMS = {
    "cpu": {"ours": Execution("cpu")},
    "cuda": {
        "ours": Execution("cuda"),
        "ours compiled": Execution("cuda", compile=True),
        "ours captured": Execution("cuda", cuda_graph=True),
        "ours compiled, captured": Execution("cuda", compile=True, cuda_graph=True),
        "ours bfloat16, captured": Execution("cuda", amp=True, cuda_graph=True),
    },
}
PROVIDERS: dict[str, dict[str, Callable[[STIB], Step]]] = {
    device: {
        **{name: partial(ours_step, execution=execution) for name, execution in forms.items()},
        **BASELINES,
        "matrix products alone": products_step,
    }
    for device, forms in FORMS.items()
}


# ---- correctness ---------------------------------------------------------------------------------


@cache
def check(device: Literal["cpu", "cuda"]) -> None:
    """Refuse to time steps that do not train as they ought to."""
    same_gradients(device)
    if device == "cuda":
        same_steps()


def same_gradients(device: Literal["cpu", "cuda"]) -> None:
    """Refuse to time anything unless our joint pass moves the model as two separate losses do."""
    x, y, _ = sample(4096, generator=torch.Generator(device).manual_seed(1))
    models = []
    for name in ("ours", "best eager"):
        model = new_model().to(device)
        step = PROVIDERS[device][name](model)
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


def same_steps() -> None:
    """Refuse to time a captured step that does not train as the uncaptured one does."""
    x, y, _ = sample(1024, generator=torch.Generator("cuda").manual_seed(1))
    weights = []
    for name in ("ours captured", "ours"):
        model = new_model().cuda()
        step = PROVIDERS["cuda"][name](model)
        torch.manual_seed(2)
        for _ in range(WARM_UP + 5):
            step(x, y)
        weights.append([p.detach() for p in model.parameters()])
    harness.require_agreement("ours captured", harness.relative_error(*weights), 1e-6)


# ---- measurement ---------------------------------------------------------------------------------


def warmed_up(
    batch: int, names: Sequence[str], inputs: tuple[Tensor, Tensor], device: str
) -> dict[str, Step]:
    """A step of every provider that the memory holds, compiled and captured."""
    torch._dynamo.reset()
    steps: dict[str, Step] = {}
    for name in names:
        step = PROVIDERS[device][name](new_model().to(device))
        try:
            for _ in range(WARM_UP + 2):
                step(*inputs)
        except torch.cuda.OutOfMemoryError:
            print(f"SKIPPED: {name} does not fit into memory")
            continue
        steps[name] = step
    return steps


def measure(batch: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Time the step of every provider in turns."""
    device = setting.device
    on_gpu = device.type == "cuda"
    check(device.type)
    generator = torch.Generator(device).manual_seed(0)
    size = min(64, harness.rotation_size(16 * batch, device))
    sets = [sample(batch, generator=generator)[:2] for _ in range(size)]
    steps = warmed_up(batch, names, sets[0], device.type)
    timings = harness.interleaved(steps, sets, 3 if setting.quick else 15, device)
    calls = {name: partial(step, *sets[0]) for name, step in steps.items()}
    medians = {name: timing.median for name, timing in timings.items()}
    for name, timing in timings.items():
        row = {
            "batch": batch,
            "provider": name,
            **timing.columns(),
            "over_best_eager": medians.get("best eager", float("nan")) / timing.median,
            "times_products": timing.median / medians.get("matrix products alone", float("nan")),
            "launches": harness.launches(calls[name], device),
            "peak_extra_mb": harness.allocator_growth(calls[name]) / 1e6 if on_gpu else None,
        }
        if name == "ours" and not on_gpu:
            row |= {f"ms_{part}": ms for part, ms in where_the_time_goes(calls[name]).items()}
        yield row


def where_the_time_goes(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds a step of each group of operators, by the profiler's own time."""
    repetitions = 10
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(repetitions):
            call()
    spent = dict.fromkeys(PARTS, 0.0)
    for event in trace.key_averages():
        group = next((g for g, names in GROUPS.items() if event.key in names), PARTS[-1])
        spent[group] += event.self_cpu_time_total / 1e3 / repetitions
    return spent


# ---- report --------------------------------------------------------------------------------------


def label(row: Row) -> str:
    return f"B={row['batch']}, {report.where(row['threads'])}"


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw the times of each provider and, where they are known, the parts of our step."""
    spent = {label(row): row for row in rows if f"ms_{PARTS[0]}" in row}
    figure.set_size_inches(11, 4.5)
    left, *right = figure.subplots(1, 2 if spent else 1, squeeze=False)[0]
    for k, provider in enumerate(dict.fromkeys(row["provider"] for row in rows)):
        chosen = [row for row in rows if row["provider"] == provider]
        left.plot(
            [label(row) for row in chosen],
            [row["ms"] for row in chosen],
            "_" if spent else "o-",
            ms=14 if spent else 4,
            mew=2.5,
            color=f"C{k}",
            label=provider,
        )
    left.set_yscale("log")
    left.set_ylabel("training step, ms (median)")
    left.tick_params(axis="x", labelrotation=30)
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    for axes in right:
        bottom = [0.0] * len(spent)
        for part in PARTS:
            shares = [
                100 * row[f"ms_{part}"] / sum(row[f"ms_{p}"] for p in PARTS)
                for row in spent.values()
            ]
            axes.bar(list(spent), shares, bottom=bottom, label=part)
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        axes.set_ylabel("share of our step, %")
        axes.tick_params(axis="x", labelrotation=30)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/training/test_step.py", "tests/training/test_objective.py"),
            providers=tuple(PROVIDERS["cpu"]),
            shapes={"paper": ("60",), "large": ("1024", "16384")},
            quick=("60",),
            kernels=("gaussian_mi", "gaussian_mi_backward"),
        ),
        "cuda": harness.On(
            backend="triton",
            tests=("tests/training/test_step_gpu.py",),
            providers=tuple(PROVIDERS["cuda"]),
            shapes={"paper": ("60",), "large": ("1024", "16384", "65536", "1000000")},
            quick=("60",),
            kernels=("gaussian_mi", "gaussian_mi_backward", "gaussian_mi_finalize"),
        ),
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "provider": str,
        **report.TIMES,
        "over_best_eager": "{:.2f}x".format,
        "times_products": "{:.2f}".format,
        "launches": str,
        "peak_extra_mb": "{:.0f}".format,
        **{f"ms_{part}": "{:.2f}".format for part in PARTS},
    },
    draw=draw,
    conclude=partial(report.losses, ours="ours", baselines=tuple(BASELINES)),
)
