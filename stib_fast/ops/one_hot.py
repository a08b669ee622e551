"""The op ``one_hot``: token ids to rows, or planes, of zeros and ones, in one pass of writing."""

from __future__ import annotations

import torch
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for
from stib_fast.ops.moments import is_readable

# out [B, L, V], or [B, V, L] with the classes first, is written in full.
LIBRARY.define("one_hot(Tensor(a!) out, Tensor ids, bool classes_first, int? padding_idx) -> ()")

ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.bool, *ID_DTYPES),
)


@torch.library.register_fake("stib_fast::one_hot", lib=LIBRARY)
def _(out: Tensor, ids: Tensor, classes_first: bool, padding_idx: int | None) -> None:
    return None


def one_hot_eager(out: Tensor, ids: Tensor, classes_first: bool, padding_idx: int | None) -> None:
    """The op in plain PyTorch; an id out of range gives zeros."""
    dim = 1 if classes_first else 2
    shape = (-1, 1) if classes_first else (-1,)
    classes = torch.arange(out.shape[dim], device=ids.device).view(shape)
    torch.eq(ids.unsqueeze(dim), classes, out=out)
    if padding_idx is not None:
        out.select(dim, padding_idx).zero_()


def one_hot_triton(out: Tensor, ids: Tensor, classes_first: bool, padding_idx: int | None) -> None:
    """The op on a GPU, and on the CPU under the interpreter; an id out of range gives zeros."""
    from stib_fast.kernels import one_hot as kernels

    kernels.one_hot(out, ids, classes_first, padding_idx)


LIBRARY.impl("one_hot", one_hot_triton, "CUDA")


def one_hot(
    ids: Tensor,
    num_classes: int,
    dtype: torch.dtype,
    classes_first: bool,
    padding_idx: int | None,
    out: Tensor | None,
) -> Tensor:
    """One-hot encoding of checked arguments on the backend in force."""
    chosen = backend_for(ids.device, ("cpp", "triton"))
    if out is None:
        batch, length = ids.shape
        shape = (num_classes, length) if classes_first else (length, num_classes)
        out = ids.new_empty((batch, *shape), dtype=dtype)
    if chosen == "eager":
        refuse_ids_outside(ids, num_classes)
        one_hot_eager(out, ids, classes_first, padding_idx)
        return out
    if chosen == "triton" and not torch.compiler.is_compiling():
        one_hot_triton(out, ids, classes_first, padding_idx)
        return out
    try:
        torch.ops.stib_fast.one_hot(out, ids, classes_first, padding_idx)
    except RuntimeError:
        refuse_ids_outside(ids, num_classes)
        raise
    return out


def check_ids(ids: Tensor, num_classes: int, padding_idx: int | None) -> None:
    """Refuse ids that are no table of integers, and a padding id without a class.

    Raises
    ------
    ValueError
        Naming the argument and the remedy.
    """
    if not isinstance(ids, Tensor):
        raise ValueError(f"ids must be a torch tensor; got {type(ids).__name__}")
    if ids.dim() != 2:
        raise ValueError(
            f"ids must have shape [B, L]; got {tuple(ids.shape)}. Give one string as ids[None]."
        )
    if ids.layout != torch.strided:
        raise ValueError("ids must be a dense tensor; convert it with ids.to_dense()")
    if ids.dtype not in ID_DTYPES:
        raise ValueError(f"ids must be uint8, int8, int16, int32 or int64; got {ids.dtype}")
    if padding_idx is not None and not 0 <= padding_idx < num_classes:
        raise ValueError(f"padding_idx must lie in [0, {num_classes}); got {padding_idx}")


def refuse_ids_outside(ids: Tensor, num_classes: int) -> None:
    """Refuse ids without a class, where they can be looked at.

    Raises
    ------
    ValueError
        Naming the first of them.
    """
    if not is_readable(ids) or ids.numel() == 0:
        return
    least, greatest = (int(x) for x in ids.aminmax())
    if least >= 0 and greatest < num_classes:
        return
    outside = (ids < 0) | (ids.to(torch.int64) >= num_classes)
    row, column = outside.nonzero()[0].tolist()
    raise ValueError(
        f"ids[{row}, {column}] is {int(ids[row, column])}, outside [0, {num_classes}): there are "
        f"{num_classes} classes"
    )
