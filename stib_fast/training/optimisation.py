"""How a model is optimised: the settings and the schedules they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimisation:
    """Settings of the optimisation; the defaults are those of the artificial experiment.

    Parameters
    ----------
    steps : int
        Number of optimisation steps.
    batch : int
        Rows in a batch.
    learning_rate : float
        Of Adam, for the model and for its adversary.
    learning_rate_end : float
        What is left of the learning rate at the end, falling as a cosine; 1 keeps it constant.
    warmup : int
        Steps in which the learning rate rises from 0.
    gradient_clip : float or None
        Largest norm of the gradient of L1 / λ with respect to the model (not the adversary).
    target_weight : float
        Weight of ‖ŷ − y‖² beside the reconstruction loss of x, inside λ(…); the authors' VAE and
        STIB without adversary have 3. Models that do not predict Y have no such term.
    invariance_weight : float
        Weight of I(Z0; Y) in nats beside the reconstruction losses, inside λ(…); of a CVIB that of
        its bound on I(Z; Y). Other models have no such term.
    critic_steps : int
        Steps of STIB's critic for each step of the model. The last is taken together with it; each
        of the others before it, on a batch of its own. Models without a critic take no such steps.
    lambda_start : float
        λ of Eq. (6) at the first step.
    lambda_growth : float
        Factor by which λ grows, or below 1 falls, …
    lambda_every : int
        … every so many steps …
    lambda_max : float
        … up to this.
    evaluations : int
        How often the figures are measured along the run.
    seed : int
        Of the weights, the data and the latent noise.

    Examples
    --------
    >>> Optimisation(steps=100).evaluation_steps()[:3]
    [10, 20, 30]
    """

    steps: int = 4000
    batch: int = 1024
    learning_rate: float = 2e-3
    learning_rate_end: float = 0.0
    warmup: int = 0
    gradient_clip: float | None = None
    target_weight: float = 1.0
    invariance_weight: float = 2.0
    critic_steps: int = 1
    lambda_start: float = 1.0
    lambda_growth: float = 1.00385
    lambda_every: int = 1
    lambda_max: float = 100.0
    evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "critic_steps", "lambda_every", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("learning_rate", "lambda_start", "lambda_growth", "lambda_max"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.lambda_start > self.lambda_max:
            raise ValueError(
                f"lambda_start must not be above lambda_max; got {self.lambda_start} and "
                f"{self.lambda_max}"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be positive or None; got {self.gradient_clip}")
        for name in ("learning_rate_end", "warmup", "target_weight", "invariance_weight", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")

    @property
    def data_seed(self) -> int:
        """Seed of the training batches: apart from that of the weights and the latent noise."""
        return 1_000_000_000 + self.seed

    def lambda_at(self, step: int) -> float:
        """λ of Eq. (6) at a step counted from 0."""
        growth = (step // self.lambda_every) * math.log(self.lambda_growth)
        exponent = min(growth, math.log(self.lambda_max / self.lambda_start))
        return self.lambda_start * math.exp(exponent)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate at a step counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return (
            self.learning_rate
            * warm
            * (self.learning_rate_end + (1 - self.learning_rate_end) * cosine)
        )

    def evaluation_steps(self) -> list[int]:
        """Steps, counted from 1, after which the figures are measured; the last is the last."""
        times = min(self.evaluations, self.steps)
        return [self.steps * (i + 1) // times for i in range(times)]
