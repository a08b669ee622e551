"""What a model has to beat: ridge regression on character n-grams, and the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LENGTHS = (2, 4, 6)
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class RidgeFit:
    """Ridge regression of one target on the counts of character n-grams.

    Parameters
    ----------
    mae : float
        On the test molecules, in the target's unit.
    length : int
        n-grams of up to so many characters, chosen on the validation molecules.
    penalty : float
        Weight of the squared norm of the coefficients, chosen likewise.
    """

    mae: float
    length: int
    penalty: float


def ridge_on_ngrams(
    train: tuple[Sequence[str], Array],
    validation: tuple[Sequence[str], Array],
    test: tuple[Sequence[str], Array],
) -> RidgeFit:
    """Fit ridge regression on counts of character n-grams, and measure it.

    The length of the n-grams and the penalty are those of the smallest error on the validation
    molecules, when fitted on the training molecules; the test molecules have no say.

    Parameters
    ----------
    train, validation, test : tuple
        SMILES, n of them, and the target's values [n].

    Examples
    --------
    >>> smiles = ["C" * i + "O" * j for i in range(1, 10) for j in range(9)]
    >>> values = np.array([float(len(s)) for s in smiles])
    >>> parts = [(smiles[i::3], values[i::3]) for i in range(3)]
    >>> ridge_on_ngrams(*parts).mae < 0.05 * mean_of_training(parts[0][1], parts[2][1])
    True
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    best, fit = float("inf"), None
    for length in LENGTHS:
        # In SMILES case tells aromatic atoms from others.
        counts = CountVectorizer(analyzer="char", ngram_range=(1, length), lowercase=False)
        features = counts.fit_transform(train[0]).astype(np.float64)
        unseen = counts.transform(validation[0])
        for penalty in PENALTIES:
            ridge = Ridge(penalty, solver="sparse_cg").fit(features, train[1])
            error = np.abs(ridge.predict(unseen) - validation[1]).mean()
            if error < best:
                best, fit = error, (counts, ridge, length, penalty)
    assert fit is not None  # an error that is no number needs a target that is none
    counts, ridge, length, penalty = fit
    predicted = ridge.predict(counts.transform(test[0]))
    return RidgeFit(float(np.abs(predicted - test[1]).mean()), length, penalty)


def mean_of_training(train: Array, test: Array) -> float:
    """Mean absolute error of predicting the training mean for every test molecule.

    Examples
    --------
    >>> mean_of_training(np.array([0.0, 2.0]), np.array([1.0, 4.0]))
    1.5
    """
    return float(np.abs(test - train.mean()).mean())
