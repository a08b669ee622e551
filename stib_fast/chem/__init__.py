"""SMILES vocabularies and tokenisers."""

from stib_fast.chem.tokenizer import SmilesTokenizer
from stib_fast.chem.vocabulary import Vocabulary, VocabularyBuilder
from stib_fast.ops.smiles import Encoded, EncodedRows, Status
from stib_fast.ops.smiles_eager import tokenize

__all__ = [
    "Encoded",
    "EncodedRows",
    "SmilesTokenizer",
    "Status",
    "Vocabulary",
    "VocabularyBuilder",
    "tokenize",
]
