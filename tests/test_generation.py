"""Generation: what is dropped and why, and that nothing else comes through."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, RDLogger

import stib_fast
from stib_fast.chem.formula import molecular_formula, ordered_formula
from stib_fast.generation import STAGES, TOLERANCE, Spread, sift
from stib_fast.training import QM9, Optimisation, QM9Config, QM9Data, Run, SmilesModel, train

RDLogger.DisableLog("rdApp.*")


def atoms(smiles):
    """Count atoms without a formula."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    return {symbol: symbols.count(symbol) for symbol in symbols}


def canonical(smiles):
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


ATOMS = {"C": 5, "H": 13, "N": 1, "O": 2}


@pytest.fixture(scope="module")
def isomers():
    """Chains and branched chains of C5H13NO2, one string a molecule."""
    chains = {"".join(order) for order in set(itertools.permutations("CCCCCNOO"))}
    inner = map("".join, set(itertools.permutations("CCCCNOO")))
    branched = {f"{c[0]}C({c[1]}){c[2:]}" for c in inner}
    found = {}
    for string in sorted(chains | branched):
        if Chem.MolFromSmiles(string) is not None:
            found.setdefault(canonical(string), string)
    strings = list(found.values())
    random.Random(0).shuffle(strings)
    assert all(atoms(string) == ATOMS for string in strings)
    return strings


@pytest.fixture(scope="module")
def run(isomers, tmp_path_factory):
    """A model that predicts and does not yet write."""
    folder = tmp_path_factory.mktemp("generation")
    data = folder / "isomers.csv"
    rows = [f"{s},{70 + s.index('N') + 0.1 * s.count('(')},{0.2 + 0.01 * s.index('O')}"
            for s in isomers[: 2 * len(isomers) // 3]]  # fmt: skip
    data.write_text("\n".join(["smiles,alpha,gap", *rows]) + "\n")
    config = QM9Config(
        data=str(data),
        molecules=QM9Data(test_fraction=0.15),
        model=SmilesModel(
            z0_dim=9, z1_dim=2, feature_dim=2, hidden=(16,), channels=8, encoder_hidden=16,
            decoder_hidden=16, embedding_dim=4,
        ),
        optimisation=Optimisation(
            steps=200, batch=64, evaluations=1, learning_rate=1e-2, invariance_weight=0.0,
            lambda_start=30.0, lambda_growth=1.0, lambda_max=30.0,
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_num_threads(1)
    experiment = QM9.from_file(config)
    run = Run(folder / "run")
    run.create(experiment)
    model = train(experiment, run)
    run.write_evaluation(experiment.evaluate(model))
    return run


@pytest.fixture
def model(run):
    return stib_fast.load(run.folder)


@pytest.fixture(scope="module")
def parts(run):
    """Strings of the training, the validation and the test part."""
    experiment = QM9.from_file(stib_fast.load(run.folder).experiment.config)
    data = experiment.encoded
    rows = (data.train_rows, data.validation_rows, data.test_rows)
    return [experiment.tokenizer.decode(data.ids[part]) for part in rows]


@pytest.fixture(scope="module")
def trained_on(parts):
    return parts[0]


class Writer(torch.nn.Module):
    """In the decoder's place: writes what it is told, and remembers what it was asked for."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, z):
        self.z = z
        return self.rows[torch.arange(len(z)) % len(self.rows)]


def written(experiment, texts):
    """Ids of strings as a decoder writes them, molecules or not; of a full row without end."""
    tokens = experiment.vocabulary
    rows = torch.full((len(texts), experiment.max_length + 1), tokens.pad_id)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.tensor([tokens.tokens.index(character) for character in text])
        row[len(text)] = tokens.eos_id
    return rows[:, : experiment.max_length]


class Babbler(torch.nn.Module):
    """In the decoder's place: a token for each dimension of Z0, molecule or not."""

    def __init__(self, experiment):
        super().__init__()
        self.experiment = experiment

    def forward(self, z):
        chance = torch.special.ndtr(z[:, :9])
        alphabet = "CCCCCNOO()"
        texts = ["".join(alphabet[int(c)] for c in row) for row in (chance * 9.999).int().tolist()]
        # One row in 20 goes on to the model's length, others end after 8 tokens.
        ended = (chance[:, 8] > 0.05).tolist()
        longer = self.experiment.max_length
        texts = [s[:8] if e else s.ljust(longer, "C") for s, e in zip(texts, ended, strict=True)]
        return written(self.experiment, texts)


@pytest.fixture
def babbling(model):
    """The model with a decoder that writes new molecules, and all that is to be dropped."""
    model.model.decoder = Babbler(model.experiment)
    return model


def test_what_is_generated_is_valid_new_and_of_the_formula(babbling, trained_on):
    result = babbling.generate(trained_on[0], n=1000)
    # All that is to be dropped is there, so that a filter that is missing shows.
    assert min(result.dropped.values()) > 0
    assert len(result) > 5
    assert sum(result.dropped.values()) + len(result) == 1000
    assert result.formula == "C5H13NO2"
    assert all(atoms(string) == ATOMS for string in result.smiles)
    assert [canonical(string) for string in result.smiles] == list(result.canonical)
    assert len(set(result.canonical)) == len(result)
    assert not set(result.canonical) & {canonical(string) for string in trained_on}


def test_strings_are_those_of_the_decoder(model, trained_on):
    result = model.generate(trained_on[0], n=50, seed=4, formula=None)
    z0 = torch.randn(50, 9, generator=torch.Generator().manual_seed(4))
    z1 = model.encode([trained_on[0]]).z1.expand(50, 2)
    ids = model.model.decoder(torch.cat([z0, z1], dim=1))
    assert set(result.smiles) <= set(model.experiment.tokenizer.decode(ids))
    ended = (ids == model.experiment.vocabulary.eos_id).any(1)
    assert result.dropped["unfinished"] == int((~ended).sum())
    assert sum(result.dropped.values()) + len(result) == 50


def test_formula_of_choice_or_any(babbling, trained_on):
    anything = babbling.generate(trained_on[0], n=600, formula=None)
    assert anything.formula is None
    assert anything.dropped["other_formula"] == 0
    other = next(s for s in anything.smiles if atoms(s) != ATOMS)
    asked = ordered_formula(molecular_formula(other))
    chosen = babbling.generate(trained_on[0], n=600, formula=asked)
    assert chosen.formula == asked
    assert other in chosen.smiles
    assert all(atoms(string) == atoms(other) for string in chosen.smiles)


def test_figures_are_those_of_the_model(babbling, run, trained_on):
    reference = trained_on[3]
    result = babbling.generate(reference, n=300, formula=None)
    torch.testing.assert_close(result.wanted, babbling.predict([reference])[0])
    # Rows in another order: float32 sums in another order, of numbers below 100.
    close = {"rtol": 0.0, "atol": 1e-4}
    again = list(result.smiles)
    torch.testing.assert_close(result.predictions, babbling.predict(again), **close)
    assert result.predictions.std(0).min() > 1e-3  # so that their order shows
    apart = babbling.encode(again).z0 - babbling.encode([reference]).z0
    torch.testing.assert_close(result.distances, apart.norm(dim=1), **close)
    assert (result.distances.diff() >= 0).all()
    gap = (result.predictions - result.wanted)[:, 0]
    assert result.consistency["gap_ev"].mae == pytest.approx(float(gap.abs().mean()))
    figures = run.read_evaluation()
    for name in result.names:
        assert result.held_out[name].mae == pytest.approx(figures[f"mae_{name}"], rel=1e-4)


def test_the_same_seed_gives_the_same_molecules(babbling, trained_on):
    first, again = (babbling.generate(trained_on[0], n=100, seed=1, formula=None) for _ in range(2))
    assert first.smiles == again.smiles
    assert first.dropped == again.dropped
    assert torch.equal(first.predictions, again.predictions)
    other = babbling.generate(trained_on[0], n=100, seed=2, formula=None)
    assert other.smiles != first.smiles


def test_each_filter_drops_what_it_is_for(model, isomers, parts):
    """What a decoder wrote is known here, so that a filter that is missing shows."""
    trained_on, validation, test = parts
    in_file = {canonical(string) for part in parts for string in part}
    # The model has not seen its test molecules.
    new = [test[0], *(string for string in isomers if canonical(string) not in in_file)]
    mirrored = next(s for s in new[2:] if "(" not in s and s != s[::-1])
    texts = [
        *new[:2], new[0],  # twice in the same way
        mirrored, mirrored[::-1],  # and from either end
        trained_on[1], trained_on[1], validation[0], trained_on[0],  # the last: the reference
        "CCO", "C(C", "", "C" * model.experiment.max_length,
    ]  # fmt: skip
    model.model.decoder = Writer(written(model.experiment, texts))
    result = model.generate(trained_on[0], n=len(texts))
    assert set(result.smiles) == {new[0], new[1], mirrored}
    assert result.dropped == {
        "unfinished": 1, "invalid": 2, "other_formula": 1, "repeated": 3, "known": 3,
    }  # fmt: skip
    # The reference need not be a training molecule to be known.
    assert new[0] not in model.generate(new[0], n=len(texts)).smiles


@pytest.mark.parametrize("stage", [*STAGES, "empty"])
def test_a_model_that_writes_garbage_leaves_nothing(stage, model, trained_on):
    text = {
        "unfinished": "C" * model.experiment.max_length,
        "invalid": "C(",
        "other_formula": "CCO",
        "empty": "",  # RDKit reads it as a molecule without atoms
    }.get(stage, trained_on[1])
    model.model.decoder = Writer(written(model.experiment, [text]))
    result = model.generate(trained_on[0], n=40)
    assert len(result) == 0
    assert result.predictions.shape == (0, 2)
    assert result.consistency == {}
    expected = dict.fromkeys(STAGES, 0)
    if stage in ("known", "repeated"):
        expected |= {"known": 1, "repeated": 39}
    else:
        expected["invalid" if stage == "empty" else stage] = 40
    assert result.dropped == expected


def test_z1_is_held_and_z0_is_of_the_prior(model, trained_on):
    writer = model.model.decoder = Writer(model.experiment.inputs([trained_on[1]]))
    model.generate(trained_on[0], n=4000)
    z0, z1 = writer.z.split([9, 2], dim=1)
    torch.testing.assert_close(z1, model.encode([trained_on[0]]).z1.expand(4000, 2))
    # Standard errors of mean and standard deviation are 0.016 and 0.011: five of them.
    assert z0.mean(0).abs().max() < 0.08
    assert (z0.std(0) - 1).abs().max() < 0.056


def test_target_values_are_met_at_the_z1_that_is_found(model, trained_on):
    writer = model.model.decoder = Writer(model.experiment.inputs([trained_on[1]]))
    gaps, polarisabilities = model.predict(trained_on[:50]).T
    # Between predictions, so that no molecule has them already.
    target = {
        "gap": float(gaps[:2].mean()) + 0.01,
        "polarisability": float(polarisabilities[:2].mean()) + 0.01,
    }
    result = model.generate(target=target, n=5)
    z1 = writer.z[:1, 9:]
    std = model.model.targets.std
    found = model.model.targets.inverse(model.model.predictor(z1))[0].detach()
    aim = torch.tensor(list(target.values()))
    assert ((found - aim) / std).abs().max() <= TOLERANCE
    torch.testing.assert_close(result.wanted, aim)
    assert result.target == {
        "gap_ev": target["gap"],
        "polarisability": target["polarisability"],
    }
    # From the molecule predicted nearest to them, not from any.
    predicted = model.predict(trained_on)
    off = ((predicted - aim) / std).square().sum(1)
    assert result.reference in [trained_on[row] for row in off.argsort()[:5].tolist()]
    # One property alone: the other is what the predictor says there.
    alone = model.generate(target={"gap_ev": target["gap"]}, n=5)
    found = model.model.targets.inverse(model.model.predictor(writer.z[:1, 9:]))[0].detach()
    torch.testing.assert_close(alone.wanted[1], found[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a reference molecule or target values"),
        ({"reference": "CCC", "target": {"gap": 6.0}}, "either a reference molecule or target"),
        ({"reference": "CCC", "n": 0}, "n must be at least 1, not 0"),
        ({"reference": "C(C"}, r"reference 'C\(C' is no molecule that RDKit reads"),
        ({"reference": ""}, "reference '' is no molecule"),
        ({"reference": "CCF"}, "reference: token 'F' .* is not in the vocabulary; write it as"),
        ({"reference": "C" * 30}, "needs 31 positions"),
        ({"target": {}}, "no target value is given; the run predicts gap_ev, polarisability"),
        ({"target": {"homo": 1.0}}, "target 'homo' is unknown; the run predicts gap_ev, polar"),
        ({"target": {"gap": 6.0, "gap_ev": 6.0}}, "target 'gap_ev' is given twice"),
        ({"target": {"gap": 60.0}}, "target gap_ev=60 is outside the values .* trained on, 5.4"),
        ({"target": {"gap": float("nan")}}, "target gap_ev=nan is outside"),
        ({"reference": "CCC", "formula": "C7H10Xx"}, "'Xx' is no element"),
        ({"reference": "CCC", "formula": "c7"}, "'c7' is no formula"),
    ],
)
def test_what_cannot_be_asked_for(arguments, message, model):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_values_that_the_predictor_never_gives_are_refused(model):
    for parameter in model.model.predictor.parameters():
        torch.nn.init.zeros_(parameter)  # predicts the mean everywhere
    with pytest.raises(ValueError, match=r"found no Z1 at which .* closest: polarisability=7\d"):
        model.generate(target={"polarisability": 71.0})


def test_without_its_molecules_nothing_is_generated(model, trained_on, monkeypatch):
    def gone(run, *, with_data):
        raise FileNotFoundError(2, "No such file or directory", "isomers.csv")

    monkeypatch.setattr("stib_fast.generation.experiment_of", gone)
    with pytest.raises(ValueError, match=r"isomers\.csv is gone: without the training molecules"):
        model.generate(trained_on[0])


@given(
    st.lists(st.tuples(st.text("CO()=1", max_size=6), st.booleans()), max_size=30),
    st.sampled_from([None, "C2H6O", "CH4"]),
)
def test_sift_accounts_for_every_string(strings, formula):
    known = {"CO", "CC"}
    kept, dropped = sift(
        [s for s, _ in strings], [e for _, e in strings], known=known, formula=formula
    )
    assert list(dropped) == list(STAGES)
    assert sum(dropped.values()) + len(kept) == len(strings)
    assert dropped["unfinished"] == sum(not ended for _, ended in strings)
    for smiles, text in kept.items():
        assert (text, True) in strings
        assert text
        assert canonical(text) == smiles
        assert smiles not in known
        if formula:
            assert (
                atoms(smiles)
                == {"C2H6O": {"C": 2, "H": 6, "O": 1}, "CH4": {"C": 1, "H": 4}}[formula]
            )


def test_formulas():
    assert ordered_formula("C7O2H10") == "C7H10O2"
    assert ordered_formula("HOH") == "H2O"
    for smiles in ("O", "Cl", "CC(F)(Cl)Br", "OS(=O)(=O)O", "O=[N+]([O-])C"):
        assert ordered_formula(molecular_formula(smiles)) == molecular_formula(smiles)
    with pytest.raises(ValueError, match="no molecule that RDKit reads"):
        molecular_formula("C1CC")
    for text in ("", "7", "C7H10O2+", "C 7"):
        with pytest.raises(ValueError, match="no formula of a neutral molecule"):
            ordered_formula(text)


def test_spread_of_one_number():
    assert Spread.of(torch.tensor([-2.0])) == Spread(1, -2.0, 2.0, -2.0, -2.0, -2.0)
