from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stib_fast.metrics.strings import string_accuracy
from stib_fast.models.smiles import SmilesDecoder, SmilesEncoder

PAD, BOS, EOS = 0, 1, 2
TOKENS, LENGTH, LATENT = 8, 6, 4
IDS = torch.tensor(
    [[4, 5, EOS, 0, 0, 0], [6, 6, 4, 7, 5, EOS], [EOS, 0, 0, 0, 0, 0], [5, EOS, 0, 0, 0, 0]]
)


def decoder() -> SmilesDecoder:
    torch.manual_seed(0)
    return SmilesDecoder(TOKENS, LENGTH, LATENT, BOS, EOS, PAD, hidden_dim=16, embedding_dim=8)


def encoder() -> SmilesEncoder:
    torch.manual_seed(0)
    return SmilesEncoder(TOKENS, LENGTH, LATENT, channels=16, hidden_dim=32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_means_do_not_depend_on_the_id_type(dtype: torch.dtype) -> None:
    network = encoder()
    mean = network(IDS.to(dtype))
    assert mean.shape == (4, LATENT)
    assert mean.dtype == torch.float32
    assert torch.equal(mean, network(IDS))


def test_the_mean_sees_every_position() -> None:
    network = encoder()
    for position in range(LENGTH):
        changed = IDS.clone()
        changed[1, position] = 3
        rows = (network(changed) != network(IDS)).any(1)
        assert rows.tolist() == [False, True, False, False]


def test_loss_is_the_sum_over_the_string() -> None:
    network, z = decoder().double(), torch.randn(4, LATENT, dtype=torch.float64)
    expected = []
    for latent, plan, row in zip(z, network.plan(z), IDS, strict=True):
        state, previous, nats = network.first_state(latent)[None], BOS, 0.0
        for token, features in zip(row[: row.tolist().index(EOS) + 1].tolist(), plan, strict=False):
            step = torch.cat([network.embedding.weight[previous], features])[None]
            output, state = network.gru(step, state)
            logits = network.logits(torch.cat([output[0], features]))
            nats -= logits.log_softmax(0)[token].item()
            previous = token
        expected.append(nats)
    # float64 sums of at most six terms of size 1, in another order.
    assert network.loss(z, IDS).tolist() == pytest.approx(expected, rel=1e-12)


def test_loss_of_indifferent_logits() -> None:
    network = decoder()
    torch.nn.init.zeros_(network.logits.weight)
    torch.nn.init.zeros_(network.logits.bias)
    # Each position costs log 8 nats; float32 sums of six terms.
    expected = [count * math.log(TOKENS) for count in (3, 6, 1, 2)]
    assert network.loss(torch.randn(4, LATENT), IDS).tolist() == pytest.approx(expected, rel=1e-6)


def test_loss_gradients() -> None:
    network, ids = decoder().double(), IDS.to(torch.uint8)
    z = torch.randn(4, LATENT, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda latent: network.loss(latent, ids), z)


def test_what_is_written_is_the_likeliest_next_token() -> None:
    network, z = decoder(), torch.randn(64, LATENT) * 3
    written = network(z)
    assert written.dtype == torch.int64
    # Teacher forcing on the written ids must agree with them at every step but padding.
    previous = F.pad(written[:, :-1], (1, 0), value=BOS)
    logits, _ = network._step(previous, network.plan(z), network._start(z))
    logits[..., [PAD, BOS]] = -torch.inf
    used = written != PAD
    assert torch.equal(logits.argmax(2)[used], written[used])


@pytest.mark.parametrize("through_gru", [True, False])
def test_logits_read_the_plan_of_their_own_position(through_gru: bool) -> None:
    network, z = decoder(), torch.randn(4, LATENT)
    if not through_gru:
        network.gru.weight_ih_l0.data[:, 8:] = 0  # behind the embedding
    previous = F.pad(IDS[:, :-1], (1, 0), value=BOS)
    plan, state = network.plan(z), network._start(z)
    before, _ = network._step(previous, plan, state)
    for position in range(LENGTH):
        changed = plan.clone()
        changed[:, position] += 1
        moved = (network._step(previous, changed, state)[0] != before).any(2).any(0)
        # What a GRU has read it remembers.
        last = LENGTH if through_gru else position + 1
        assert moved.nonzero().flatten().tolist() == list(range(position, last))


def test_padding_follows_eos_and_nothing_else() -> None:
    network, z = decoder(), torch.randn(256, LATENT) * 3
    with torch.no_grad():
        network.logits.bias[EOS] += 0.2
        network.logits.bias[PAD] += 5
        network.logits.bias[BOS] += 5
    written = network(z)
    after = (written == EOS).cumsum(1) - (written == EOS).long()
    assert torch.equal(written == PAD, after > 0)
    assert not (written == BOS).any()
    # The test means something only if rows end early, late and not at all.
    ends = (written == EOS).any(1)
    assert 0 < ends.sum() < len(z)
    assert (written == PAD).any()


def test_writing_leaves_no_graph() -> None:
    z = torch.randn(2, LATENT, requires_grad=True)
    assert not decoder()(z).requires_grad


@pytest.mark.parametrize("ids", [IDS[:, :5], IDS[0], IDS.float()])
def test_other_ids_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"ids must be integers \[B, 6\]"):
        encoder()(ids)
    with pytest.raises(ValueError, match=r"ids must be integers \[B, 6\]"):
        decoder().loss(torch.zeros(4, LATENT), ids)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        SmilesEncoder(TOKENS, LENGTH, LATENT, kernel_size=4)


def test_the_pair_learns_strings_by_heart() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, LENGTH, (32,))
    ids = torch.randint(4, TOKENS, (32, LENGTH))
    ids[torch.arange(LENGTH) >= lengths[:, None]] = PAD
    ids[torch.arange(32), lengths] = EOS
    one = SmilesEncoder(TOKENS, LENGTH, 8, channels=32)
    other = SmilesDecoder(TOKENS, LENGTH, 8, BOS, EOS, PAD, hidden_dim=64)
    optimiser = torch.optim.Adam([*one.parameters(), *other.parameters()], lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        other.loss(one(ids), ids).mean().backward()
        optimiser.step()
    assert string_accuracy(other(one(ids)), ids, PAD) == 1
