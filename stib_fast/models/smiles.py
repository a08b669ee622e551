"""Encoder and decoder of SMILES as token ids: convolutions in, a recurrent network out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stib_fast.nn import OneHotConv1d


class SmilesEncoder(nn.Module):
    """Map token ids to the mean of the latent variable.

    Three convolutions over the one-hot tokens, which are never made, then two linear layers over
    all positions. Padding is a token like others here, since where it begins tells the length.

    Parameters
    ----------
    vocabulary_size : int
        Number of tokens V.
    max_length : int
        Number of positions L.
    latent_dim : int
        Size of the latent variable.
    channels : int
        Channels of the convolutions.
    kernel_size : int
        Tokens that a convolution sees; odd.
    hidden_dim : int
        Width of the layer before the last.

    Examples
    --------
    >>> encoder = SmilesEncoder(vocabulary_size=13, max_length=21, latent_dim=16)
    >>> encoder(torch.zeros(2, 21, dtype=torch.uint8)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        latent_dim: int,
        channels: int = 64,
        kernel_size: int = 5,
        hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        same = kernel_size // 2
        self.convolutions = nn.Sequential(
            OneHotConv1d(vocabulary_size, channels, kernel_size, padding=same),
            nn.SiLU(),
            nn.Conv1d(channels, channels, kernel_size, padding=same),
            nn.SiLU(),
            nn.Conv1d(channels, channels, kernel_size, padding=same),
            nn.SiLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(channels * max_length, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, latent_dim),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return the means.

        Parameters
        ----------
        ids : Tensor
            Integer, shape [B, L].

        Returns
        -------
        Tensor
            Shape [B, latent_dim], in the parameters' dtype.

        Raises
        ------
        ValueError
            `ids` has another length or is no integer tensor; on the CPU, an id out of range.
        """
        _check_ids(ids, self.max_length)
        features: Tensor = self.convolutions(ids)
        mean: Tensor = self.head(features.flatten(1))
        return mean


class SmilesDecoder(nn.Module):
    """Write token ids from the latent variable, one after the other.

    A plan, drawn up from z at once, has some features for each position of the string. At a
    position a GRU, whose first state comes from z, reads its features beside the previous token;
    the logits read the GRU's output and those features. What stands where then need not be carried
    along in the GRU's state.

    Parameters
    ----------
    vocabulary_size : int
        Number of tokens V.
    max_length : int
        Number of positions L, eos included.
    latent_dim : int
        Size of the latent variable (and of whatever stands beside it, as Y in a CVAE).
    bos_id, eos_id, pad_id : int
        The special tokens.
    hidden_dim : int
        Width of the GRU.
    embedding_dim : int
        Width of the previous token's embedding.
    plan_dim : int
        Features of a position in the plan.
    plan_hidden : int
        Width of the hidden layer between z and the plan.

    Examples
    --------
    >>> decoder = SmilesDecoder(13, 21, latent_dim=16, bos_id=1, eos_id=2, pad_id=0)
    >>> decoder(torch.zeros(2, 16)).shape
    torch.Size([2, 21])
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        latent_dim: int,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        hidden_dim: int = 128,
        embedding_dim: int = 32,
        plan_dim: int = 32,
        plan_hidden: int = 256,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.first_state = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.plan = nn.Sequential(
            nn.Linear(latent_dim, plan_hidden),
            nn.SiLU(),
            nn.Linear(plan_hidden, max_length * plan_dim),
            nn.Unflatten(1, (max_length, plan_dim)),
        )
        self.gru = nn.GRU(embedding_dim + plan_dim, hidden_dim, batch_first=True)
        self.logits = nn.Linear(hidden_dim + plan_dim, vocabulary_size)

    def loss(self, z: Tensor, ids: Tensor) -> Tensor:
        """Return the negative log-likelihood of each string given z (teacher forcing).

        Parameters
        ----------
        z : Tensor
            Shape [B, latent_dim].
        ids : Tensor
            Integer, shape [B, L]: with eos, without bos, padded.

        Returns
        -------
        Tensor
            Shape [B], nats: the tokens' cross-entropy summed over all positions but padding.

        Raises
        ------
        ValueError
            `ids` has another length or is no integer tensor.
        """
        _check_ids(ids, self.max_length)
        ids = ids.to(torch.int64)
        previous = F.pad(ids[:, :-1], (1, 0), value=self.bos_id)
        logits, _ = self._step(previous, self.plan(z), self._start(z))
        nats = F.cross_entropy(
            logits.transpose(1, 2).to(z.dtype), ids, ignore_index=self.pad_id, reduction="none"
        )
        return nats.sum(1)

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """Write the likeliest token at each step, fed with its own tokens.

        Parameters
        ----------
        z : Tensor
            Shape [B, latent_dim].

        Returns
        -------
        Tensor
            int64, shape [B, L]: pad after eos and nowhere else, never bos. A row that does not end
            within L positions has no eos.
        """
        state, plan = self._start(z), self.plan(z)
        token = torch.full((len(z), 1), self.bos_id, device=z.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        written = []
        for features in plan.split(1, dim=1):
            logits, state = self._step(token, features, state)
            logits[..., [self.pad_id, self.bos_id]] = -torch.inf
            token = logits.argmax(2).masked_fill(ended, self.pad_id)
            ended = ended | (token == self.eos_id)
            written.append(token)
        return torch.cat(written, dim=1)

    def _start(self, z: Tensor) -> Tensor:
        state: Tensor = self.first_state(z)
        return state[None]

    def _step(self, previous: Tensor, plan: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and the next state, given previous tokens [B, T] and their plan."""
        outputs, state = self.gru(torch.cat([self.embedding(previous), plan], dim=2), state)
        return self.logits(torch.cat([outputs, plan], dim=2)), state


def _check_ids(ids: Tensor, max_length: int) -> None:
    if ids.ndim != 2 or ids.shape[1] != max_length or ids.is_floating_point():
        raise ValueError(
            f"ids must be integers [B, {max_length}], not {ids.dtype} {list(ids.shape)}"
        )
