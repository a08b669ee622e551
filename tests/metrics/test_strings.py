from __future__ import annotations

import pytest
import torch

from stib_fast.metrics.strings import string_accuracy, token_accuracy

# pad 0, eos 2. Rows: right; wrong in one place; right but too long; right with rubbish after eos.
TARGET = torch.tensor([[4, 5, 2, 0], [4, 4, 4, 2], [4, 2, 0, 0], [5, 2, 0, 0]])
PREDICTED = torch.tensor([[4, 5, 2, 0], [4, 5, 4, 2], [4, 4, 2, 0], [5, 2, 7, 7]])


def test_hand_counted() -> None:
    assert token_accuracy(PREDICTED, TARGET, pad_id=0) == 9 / 11
    assert string_accuracy(PREDICTED, TARGET, pad_id=0) == 2 / 4


def test_a_shorter_prediction_is_wrong() -> None:
    predicted = torch.tensor([[4, 2, 0, 0]])
    assert token_accuracy(predicted, TARGET[:1], pad_id=0) == 1 / 3
    assert string_accuracy(predicted, TARGET[:1], pad_id=0) == 0


def test_dtypes_may_differ_and_padding_may_have_another_id() -> None:
    assert token_accuracy(PREDICTED, TARGET.to(torch.uint8), pad_id=0) == 9 / 11
    swapped = torch.where(TARGET == 0, 9, TARGET)
    assert string_accuracy(PREDICTED, swapped, pad_id=9) == 2 / 4


@pytest.mark.parametrize("accuracy", [token_accuracy, string_accuracy])
def test_refusals(accuracy: object) -> None:
    with pytest.raises(ValueError, match=r"predicted \[4, 3\] and target \[4, 4\]"):
        accuracy(PREDICTED[:, :3], TARGET, pad_id=0)
    with pytest.raises(ValueError, match="other than padding"):
        accuracy(TARGET * 0, TARGET * 0, pad_id=0)
    with pytest.raises(ValueError, match="other than padding"):
        accuracy(TARGET[:0], TARGET[:0], pad_id=0)
