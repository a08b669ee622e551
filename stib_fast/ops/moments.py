"""The op ``moments``: count, mean and scatter matrix of a sample in several parts, in one read.

Gaussian mutual information is an algebra of these moments: those of a union of samples are a sum
(Chan, Golub & LeVeque 1979), and everything after them is d x d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for

LIBRARY.define(
    "moments(Tensor[] parts, Tensor? weight, bool fast)"
    " -> (Tensor count, Tensor mean, Tensor scatter)"
)
# Rows w_r (((x_r - center) * scale) matrix * scale + shift), one tensor for each part.
LIBRARY.define(
    "moments_apply(Tensor[] parts, Tensor? weight, Tensor center, Tensor scale, Tensor matrix,"
    " Tensor shift) -> Tensor[]"
)

CHUNKS = 64
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Triple = tuple[Tensor, Tensor, Tensor]


@torch.library.register_fake("stib_fast::moments", lib=LIBRARY)
def _(parts: Sequence[Tensor], weight: Tensor | None, fast: bool) -> Triple:
    d = sum(part.shape[1] for part in parts)
    new = parts[0].new_empty
    return (
        new((), dtype=torch.float64),
        new((d,), dtype=torch.float64),
        new((d, d), dtype=torch.float64),
    )


@torch.library.register_fake("stib_fast::moments_apply", lib=LIBRARY)
def _(
    parts: Sequence[Tensor],
    weight: Tensor | None,
    center: Tensor,
    scale: Tensor,
    matrix: Tensor,
    shift: Tensor,
) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in parts]


def moments_eager(parts: Sequence[Tensor], weight: Tensor | None, fast: bool) -> Triple:
    """Count, mean and scatter in plain PyTorch, differentiable to any order.

    Rows are centred before they are multiplied, and products are summed over `CHUNKS` fixed chunks,
    so that the bits do not depend on the number of threads.
    """
    # MPS has no float64: there the products are float32 and the d x d step runs on the CPU.
    wide = torch.float32 if parts[0].device.type == "mps" else torch.float64
    x = torch.cat([part.to(wide) for part in parts], dim=1)
    rows, d = x.shape
    w = torch.ones_like(x[:, :1]) if weight is None else weight.to(wide)[:, None]
    pad = (0, 0, 0, -rows % CHUNKS)
    weights = torch.nn.functional.pad(w, pad).reshape(CHUNKS, -1, 1)
    count = weights.sum(1).sum(0)

    def total(values: Tensor) -> Tensor:
        chunks = torch.nn.functional.pad(values, pad).reshape(CHUNKS, -1, d)
        return (weights * chunks).sum(1).sum(0)

    safe_count = torch.where(count > 0, count, torch.ones_like(count))
    origin = total(x.detach()) / safe_count  # the mean, but for rounding
    mean = origin + total(x - origin) / safe_count
    centered = torch.nn.functional.pad(x - mean, pad).reshape(CHUNKS, -1, d)
    with torch.autocast(x.device.type, enabled=False):
        if fast:
            products = (centered.float() * weights.float()).mT @ centered.float()
        else:
            products = (centered * weights).mT @ centered
    scatter = products.to(wide).sum(0)
    if wide is torch.float32:
        count, mean, scatter = (v.to("cpu", torch.float64) for v in (count, mean, scatter))
    return count[0], mean, scatter


def affine_rows(
    parts: Sequence[Tensor],
    weight: Tensor | None,
    center: Tensor,
    scale: Tensor,
    matrix: Tensor,
    shift: Tensor | None,
    factor: Tensor | None,
) -> list[Tensor]:
    """Rows w ((x - center) * scale) matrix * scale * factor + w shift, on a GPU.

    Likewise on the CPU under Triton's interpreter.
    """
    from stib_fast.kernels import gaussian_mi as kernels

    _keep_in_bounds(parts, weight, len(center))
    if len(center) <= kernels.MOST_COLUMNS:
        return kernels.apply(parts, weight, center, scale, matrix, shift, factor)
    # The matrix product dominates: it is the vendor's.
    x = torch.cat([part.to(torch.float64) for part in parts], dim=1)
    unit = scale if factor is None else scale * factor
    rows = ((x - center) * scale) @ matrix * unit
    rows = rows if shift is None else rows + shift
    rows = rows if weight is None else weight[:, None] * rows
    sizes = [part.shape[1] for part in parts]
    return [row.contiguous() for row in rows.to(parts[0].dtype).split(sizes, dim=1)]


def _keep_in_bounds(parts: Sequence[Tensor], weight: Tensor | None, columns: int) -> None:
    """Refuse a direct call of the op whose kernel would read past an end."""
    rows = len(parts[0])
    if any(len(part) != rows or part.dtype != parts[0].dtype for part in parts):
        raise ValueError("moments: parts must have the same rows and dtype")
    if sum(part.shape[1] for part in parts) != columns:
        raise ValueError(f"moments: the parts have not {columns} columns")
    if weight is not None and (weight.shape != (rows,) or weight.dtype != torch.float64):
        raise ValueError(f"moments: weight must be float64 of shape [{rows}]")


def moments_triton(parts: Sequence[Tensor], weight: Tensor | None, fast: bool) -> Triple:
    """The op on a GPU, and on the CPU under the interpreter."""
    from stib_fast.kernels import gaussian_mi as kernels

    columns = sum(part.shape[1] for part in parts)
    _keep_in_bounds(parts, weight, columns)
    if columns <= kernels.MOST_COLUMNS:
        return kernels.moments(parts, weight, fast)
    with torch.no_grad():
        return moments_eager(parts, weight, fast)


def moments_apply_triton(
    parts: Sequence[Tensor],
    weight: Tensor | None,
    center: Tensor,
    scale: Tensor,
    matrix: Tensor,
    shift: Tensor,
) -> list[Tensor]:
    """The op on a GPU, and on the CPU under the interpreter."""
    center, scale, matrix, shift = (x.contiguous() for x in (center, scale, matrix, shift))
    return affine_rows(parts, weight, center, scale, matrix, shift, None)


LIBRARY.impl("moments", moments_triton, "CUDA")
LIBRARY.impl("moments_apply", moments_apply_triton, "CUDA")
# Under the interpreter there is no GPU for the dispatcher to find.
DISPATCHED = SimpleNamespace(
    moments=torch.ops.stib_fast.moments.default,
    moments_apply=torch.ops.stib_fast.moments_apply.default,
)
INTERPRETED = SimpleNamespace(moments=moments_triton, moments_apply=moments_apply_triton)


def are_interpreted(x: Tensor, chosen: str) -> bool:
    """Whether Triton's kernels run on the CPU, where the dispatcher has others."""
    return chosen == "triton" and x.device.type == "cpu"


# The registered autograd of an op is Python of its own; an autograd.Function replaces it.
below_autograd = torch._C._AutoDispatchBelowAutograd


def refuse_double_backward(op: str) -> None:
    """Make the gradient of `op`, itself a gradient, an error instead of silently nothing."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"torch.ops.stib_fast.{op} can't be differentiated: call stib_fast.functional, whose "
            "gradients can be differentiated in eager mode, in place of the op"
        )

    torch.library.register_autograd(f"stib_fast::{op}", refuse, lib=LIBRARY)


def differentiable_vjp(
    function: Callable[..., Tensor | Sequence[Tensor]],
    parts: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor | None]:
    """Vector-Jacobian product of a function of `parts`, itself differentiable.

    Through views of the parts: between the parts themselves, one may be computed from another, or
    be the same tensor, there are other paths.
    """
    views = [part.view_as(part) for part in parts]
    needed = [view for view in views if view.requires_grad]
    found = iter(torch.autograd.grad(function(*views), needed, grads, create_graph=True))
    return [next(found) if view.requires_grad else None for view in views]


class _Moments(torch.autograd.Function):
    """`moments` on the compiled backend, with its vector-Jacobian product."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, weight: Tensor | None, fast: bool, *parts: Tensor
    ) -> Triple:
        with below_autograd():
            count, mean, scatter = kernels.moments(parts, weight, fast)
        ctx.kernels, ctx.fast = kernels, fast
        ctx.save_for_backward(weight, count, mean, scatter, *parts)
        ctx.mark_non_differentiable(count)
        return count, mean, scatter

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, count, mean, scatter, *parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            vjp = differentiable_vjp(
                lambda *views: moments_eager(views, weight, ctx.fast)[1:], parts, grads[1:]
            )
            return None, None, None, *vjp
        with below_autograd():
            rows = _moments_rows(ctx.kernels, parts, weight, count, mean, scatter, *grads[1:])
        return None, None, None, *rows


def _moments_rows(
    kernels: Any,
    parts: Sequence[Tensor],
    weight: Tensor | None,
    count: Tensor,
    mean: Tensor,
    scatter: Tensor,
    grad_mean: Tensor,
    grad_scatter: Tensor,
) -> list[Tensor]:
    """Rows of the gradient: w ((x - mean)(G + G^T) + g / count)."""
    # The kernel works on columns scaled to unit scatter, so that float32 neither overflows nor
    # underflows; a constant column keeps its unit.
    spread = scatter.diagonal()
    scale = torch.where(spread > 0, spread, torch.ones_like(spread)).rsqrt()
    # Gradients of torch.linalg come in column-major order, which the sum of the two keeps.
    matrix = ((grad_scatter + grad_scatter.mT) / (scale[:, None] * scale)).contiguous()
    shift = grad_mean / torch.where(count > 0, count, torch.ones_like(count))
    return kernels.moments_apply(parts, weight, mean, scale, matrix, shift)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    parts, weight, _ = inputs
    ctx.save_for_backward(weight, *output, *parts)


def _backward(ctx: Any, *grads: Tensor) -> tuple[list[Tensor], None, None]:
    weight, count, mean, scatter, *parts = ctx.saved_tensors
    rows = _moments_rows(DISPATCHED, parts, weight, count, mean, scatter, *grads[1:])
    return rows, None, None


torch.library.register_autograd(
    "stib_fast::moments", _backward, setup_context=_setup_context, lib=LIBRARY
)
refuse_double_backward("moments_apply")


def moments(parts: Sequence[Tensor], weight: Tensor | None, fast: bool) -> Triple:
    """Count, mean and scatter of checked parts on the backend in force."""
    chosen = backend_for(parts[0].device, ("cpp", "triton"))
    if chosen == "eager":
        return moments_eager(parts, weight, fast)
    if torch.compiler.is_compiling():
        return torch.ops.stib_fast.moments(parts, weight, fast)
    kernels = INTERPRETED if are_interpreted(parts[0], chosen) else DISPATCHED
    return _Moments.apply(kernels, weight, fast, *parts)


def check_parts(names: Sequence[str], parts: Sequence[Tensor]) -> None:
    """Refuse what no backend is defined on.

    Raises
    ------
    ValueError
        Naming the part and the remedy.
    """
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, Tensor):
            raise ValueError(f"{name} must be a torch tensor; got {type(part).__name__}")
        if part.dim() != 2:
            raise ValueError(
                f"{name} must have shape [rows, columns]; got {tuple(part.shape)}. "
                "Reshape one column with x[:, None]; flatten leading dimensions or loop over them."
            )
        if part.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor; convert it with {name}.to_dense()")
        if part.dtype not in FLOATS:
            raise ValueError(
                f"{name} must be float32, float64, bfloat16 or float16; got {part.dtype}. "
                f"Convert it with {name}.float()."
            )
        if part.dtype != first.dtype:
            raise ValueError(f"{name} is {part.dtype} but {names[0]} is {first.dtype}; convert one")
        if part.device != first.device:
            raise ValueError(f"{name} is on {part.device} but {names[0]} is on {first.device}")
        if part.shape[0] != first.shape[0]:
            raise ValueError(
                f"{name} has {part.shape[0]} rows but {names[0]} has {first.shape[0]}; "
                "they are samples of one joint variable"
            )
        if part.shape[1] == 0:
            raise ValueError(f"{name} has no columns")


def is_readable(x: Tensor) -> bool:
    """Whether looking at the values neither stops a device nor cuts a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_weight(weight: Tensor, like: Tensor) -> Tensor:
    """Weights as float64 of one element a row.

    Raises
    ------
    ValueError
        For a wrong shape or device, for weights that ask for a gradient and, on the CPU, for
        negative or non-finite ones.
    """
    if not isinstance(weight, Tensor) or weight.shape != like.shape[:1]:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be a tensor of shape [{like.shape[0]}]; got {shape}")
    if weight.device != like.device:
        raise ValueError(f"weight is on {weight.device} but the sample is on {like.device}")
    if weight.requires_grad:
        raise ValueError("weight has no gradient here; pass weight.detach()")
    if weight.is_complex():
        raise ValueError("weight must be real")
    if is_readable(weight) and not bool(((weight >= 0) & (weight < torch.inf)).all()):
        raise ValueError("weight must be finite and not negative: it says how often a row counts")
    if weight.device.type == "mps":
        return weight.float()
    return weight.to(torch.float64).contiguous()
