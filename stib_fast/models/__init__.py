"""The five models and the networks they are made of."""

from stib_fast.models.all_pairs_kl import PairSums, all_pairs_kl
from stib_fast.models.autoencoder import Autoencoder, Decoder, Latent, Posterior
from stib_fast.models.blocks import ScaledMLP, Towers, VectorDecoder, kl_per_dimension
from stib_fast.models.conditional import CVAE, CVIB
from stib_fast.models.kinds import TITLES, Kind, assembled, vector_model, vector_stib
from stib_fast.models.smiles import SmilesDecoder, SmilesEncoder
from stib_fast.models.stib import STIB, VAE, STIBWithoutAdversary

__all__ = [
    "CVAE",
    "CVIB",
    "STIB",
    "TITLES",
    "VAE",
    "Autoencoder",
    "Decoder",
    "Kind",
    "Latent",
    "PairSums",
    "Posterior",
    "STIBWithoutAdversary",
    "ScaledMLP",
    "SmilesDecoder",
    "SmilesEncoder",
    "Towers",
    "VectorDecoder",
    "all_pairs_kl",
    "assembled",
    "kl_per_dimension",
    "vector_model",
    "vector_stib",
]
