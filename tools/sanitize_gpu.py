"""Call each GPU op on small inputs: what compute-sanitizer watches in `make gpu-check`.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tools.sanitize_gpu

Without PyTorch's cache each tensor is an allocation of its own, and a step over its end is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from stib_fast import functional as F
from stib_fast.chem import SmilesTokenizer, Vocabulary


def one_hot() -> None:
    """Both layouts, of an odd length."""
    ids = torch.randint(7, (5, 37), dtype=torch.uint8, device="cuda")
    F.one_hot(ids, 7, padding_idx=0)
    F.one_hot(ids, 7, torch.bfloat16, "BVL")


def one_hot_conv1d() -> None:
    """Forward and backward."""
    ids = torch.randint(7, (5, 37), dtype=torch.uint8, device="cuda")
    weight = torch.randn(9, 7, 3, device="cuda", requires_grad=True)
    F.one_hot_conv1d(ids, weight, padding=1).sum().backward()


def smiles() -> None:
    """Bytes to ids."""
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["C[C@@H](Cl)Br"]), 12)
    strings = ["C[C@@H](Cl)Br", "ClC", ""] * 50
    data = torch.frombuffer(bytearray("".join(strings).encode()), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, strings)]).cumsum(0)
    tokenizer.encode_bytes(data.cuda(), offsets.cuda())


def gaussian_mi() -> None:
    """Forward and backward, in a wide and a narrow dtype, up to all the columns of the kernels."""
    for n, m in ((2, 2), (9, 9), (33, 31), (64, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            z, y = (torch.randn(301, k, device="cuda", dtype=dtype) for k in (n, m))
            F.gaussian_mi(z.requires_grad_(), y.requires_grad_()).backward()


def gaussian_mi_of_weighted_strided_rows() -> None:
    """Every second column and row, in float64."""
    z, y = (torch.randn(602, 14, device="cuda", dtype=torch.float64)[::2, ::2] for _ in range(2))
    weight = torch.rand(301, device="cuda", dtype=torch.float64)
    F.gaussian_mi(z.requires_grad_(), y.requires_grad_(), weight=weight).backward()


def gaussian_mi_fast() -> None:
    """Products in float32."""
    z, y = (torch.randn(301, 9, device="cuda", requires_grad=True) for _ in range(2))
    F.gaussian_mi(z, y, precision="fast").backward()


def moments() -> None:
    """Three parts, with a gradient into the means too."""
    parts = [torch.randn(301, k, device="cuda", requires_grad=True) for k in (7, 1, 10)]
    found = F.moments(*parts)
    (found.scatter.square().sum() + found.mean.sum()).backward()


def gaussian_mi_finalize() -> None:
    """Sides that differ, and all the shared memory that it takes."""
    for n, d in ((1, 2), (2, 5), (9, 18), (40, 63), (1, 128), (64, 128)):
        scatter = torch.eye(d, device="cuda", dtype=torch.float64) + 0.1
        count = torch.full((), 100.0, device="cuda", dtype=torch.float64)
        torch.ops.stib_fast.gaussian_mi_finalize(count, scatter[0], scatter, n, 1e-9, 2.0**-24)


def knn_mi() -> None:
    """Both algorithms, of more points than a program takes."""
    x, y = torch.randn(2, 130, 3, device="cuda")
    for variant in (1, 2):
        F.knn_mi(x, y, k=3, variant=variant)


CALLS: tuple[Callable[[], None], ...] = (
    one_hot,
    one_hot_conv1d,
    smiles,
    gaussian_mi,
    gaussian_mi_of_weighted_strided_rows,
    gaussian_mi_fast,
    moments,
    gaussian_mi_finalize,
    knn_mi,
)


def main() -> None:
    """Run every call."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is usable here")
    torch.manual_seed(0)
    for call in CALLS:
        call()
        torch.cuda.synchronize()
        print(f"{call.__name__} ran", flush=True)


if __name__ == "__main__":
    main()
