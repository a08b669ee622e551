"""`InvarianceCritic` in a LightningModule: one optimiser, automatic optimisation, DDP as it is.

The critic's loss turns the sign of the gradient between z and the critic, so one backward pass
trains both sides and nothing else of Lightning's loop changes. Under DDP, ``group=`` makes the
mutual information that of all processes' rows: its gradients are scaled so that the mean which DDP
takes over the processes is the gradient of the global batch, as it is for the mean squared error.
Processes should hold equally many rows (``drop_last=True``).

The table is made up: columns u + sin 2s and s + 0.3 u give u and s away exactly; the target is
u + 0.5 e, so that the least error is 0.25, with all that z knows of s removed or not.

    python examples/lightning_module.py
"""

from __future__ import annotations

import logging
import math

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from stib_fast import functional as F
from stib_fast.nn import MLP, InvarianceCritic

Batch = tuple[Tensor, Tensor, Tensor]


class Noise(torch.nn.Module):
    """Part of the representation: fine detail, where s escapes the critic, is lost in it.

    Without it, weight 2 left 1.7 bits by k-NN, of which the critic saw 0.06.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return z with noise of standard deviation 0.1."""
        return z + 0.1 * torch.randn_like(z)


class InvariantRegressor(lightning.LightningModule):
    """Predicts y from x through a representation z [B, z_dim] that does not tell of s.

    Batches are x [B, columns], s [B, 1] and y [B, 1]; `weight` is that of I(z; s) in nats.
    """

    def __init__(
        self, columns: int, z_dim: int = 2, weight: float = 2.0, learning_rate: float = 3e-3
    ) -> None:
        super().__init__()
        self.weight, self.learning_rate = weight, learning_rate
        self.encoder = torch.nn.Sequential(MLP([columns, 64, 64, z_dim]), Noise())
        self.head = MLP([z_dim, 64, 1])
        self.critic = InvarianceCritic(z_dim, y_dim=1, hidden=(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction [B, 1]."""
        return self.head(self.encoder(x))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the task's loss and the critic's, whose gradient alone has a meaning."""
        x, s, y = batch
        z = self.encoder(x)
        task = (self.head(z) - y).square().mean()
        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        # The full weight at once can empty z for good: it grows over the first half of the run.
        ramp = min(1.0, 2 * self.global_step / self.trainer.estimated_stepping_batches)
        adversary, mi, _ = self.critic.losses(z, s, ramp * self.weight, group=group)
        self.log_dict({"task": task, "mi_nats": mi})
        return task + adversary

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimiser of both sides, its rate falling to 0 over the run."""
        optimiser = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def table(rows: int, seed: int) -> TensorDataset:
    """Return the columns, s and y."""
    generator = torch.Generator().manual_seed(seed)
    u, s, e = torch.randn(3, rows, generator=generator)
    x = torch.stack([u + (2 * s).sin(), s + 0.3 * u], 1)
    return TensorDataset(x, s[:, None], (u + 0.5 * e)[:, None])


def main(max_epochs: int = 8, rows: int = 50_000) -> dict[float, tuple[float, float]]:
    """Train without and with weight on the critic; the table is of held-out rows."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    x, s, y = table(5000, seed=2).tensors
    results = {}
    print(f"{'weight':>6} {'MSE':>7} {'least':>7} {'I(z; s) bits':>13}")
    for weight in (0.0, 2.0):
        lightning.seed_everything(0, verbose=False)
        model = InvariantRegressor(columns=2, weight=weight)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches = DataLoader(table(rows, seed=1), 512, shuffle=True, drop_last=True)
        trainer.fit(model, batches)
        with torch.no_grad():
            z, error = model.encoder(x), (model(x) - y).square().mean().item()
        bits = F.knn_mi((z - z.mean(0)) / z.std(0), s).item() / math.log(2)
        print(f"{weight:6.0f} {error:7.3f} {0.25:7.3f} {bits:13.3f}")
        results[weight] = (error, bits)
    return results


if __name__ == "__main__":
    main()
