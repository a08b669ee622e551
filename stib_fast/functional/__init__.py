"""The public ops as functions."""

from stib_fast.functional.copula import gaussian_copula_cmi, gaussian_copula_mi, normal_scores
from stib_fast.functional.gaussian import (
    Precision,
    gaussian_cmi,
    gaussian_cmi_of,
    gaussian_mi,
    gaussian_mi_of,
    moments,
)
from stib_fast.functional.knn import KnnEstimate, knn_entropy, knn_mi, knn_mi_subsampled
from stib_fast.functional.onehot import OneHotLayout, one_hot, one_hot_conv1d

__all__ = [
    "KnnEstimate",
    "OneHotLayout",
    "Precision",
    "gaussian_cmi",
    "gaussian_cmi_of",
    "gaussian_copula_cmi",
    "gaussian_copula_mi",
    "gaussian_mi",
    "gaussian_mi_of",
    "knn_entropy",
    "knn_mi",
    "knn_mi_subsampled",
    "moments",
    "normal_scores",
    "one_hot",
    "one_hot_conv1d",
]
