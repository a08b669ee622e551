"""STIB and the networks it is made of."""

from stib_fast.models.blocks import ScaledMLP, VectorDecoder, kl_per_dimension
from stib_fast.models.smiles import SmilesDecoder, SmilesEncoder
from stib_fast.models.stib import STIB, Decoder, Latent, vector_stib

__all__ = [
    "STIB",
    "Decoder",
    "Latent",
    "ScaledMLP",
    "SmilesDecoder",
    "SmilesEncoder",
    "VectorDecoder",
    "kl_per_dimension",
    "vector_stib",
]
