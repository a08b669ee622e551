"""SMILES vocabularies and tokenisers."""

from stib_fast.chem.tokenizer import SmilesTokenizer
from stib_fast.chem.vocabulary import Vocabulary
from stib_fast.ops.smiles import Encoded, tokenize

__all__ = ["Encoded", "SmilesTokenizer", "Vocabulary", "tokenize"]
