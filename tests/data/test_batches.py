import pytest
import torch

from stib_fast.data import ShuffledBatches


def test_an_epoch_has_each_row_once_and_parts_stay_together():
    x = torch.arange(12)
    batches = ShuffledBatches(x, x * 10, batch_size=4, seed=3)
    for _ in range(2):
        epoch = [next(batches) for _ in range(3)]
        rows = torch.cat([a for a, _ in epoch])
        assert sorted(rows.tolist()) == x.tolist()
        assert all(torch.equal(a * 10, b) for a, b in epoch)


def test_resumes_within_and_across_epochs_bit_for_bit():
    x = torch.arange(10)
    batches = ShuffledBatches(x, batch_size=3, seed=0)
    next(batches)
    state = batches.state_dict()
    expected = [next(batches)[0] for _ in range(7)]
    other = ShuffledBatches(x, batch_size=3, seed=99)
    other.load_state_dict(state)
    assert all(torch.equal(a, next(other)[0]) for a in expected)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="between 1 and the 2 rows; got 3"):
        ShuffledBatches(torch.arange(2), batch_size=3, seed=0)
