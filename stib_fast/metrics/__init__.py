"""Errors, accuracies, and how much of Y is left in Z0."""

from stib_fast.metrics.errors import mae
from stib_fast.metrics.invariance import invariance, posterior_draw
from stib_fast.metrics.probes import probe_r2
from stib_fast.metrics.strings import string_accuracy, token_accuracy

__all__ = ["invariance", "mae", "posterior_draw", "probe_r2", "string_accuracy", "token_accuracy"]
