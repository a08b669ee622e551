"""The experiments on molecules: anybody's table, ZINC, token caches."""

import gzip
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

import stib_fast
from stib_fast.data import CacheSettings, TokenCache, write_token_cache
from stib_fast.metrics import token_accuracy
from stib_fast.reports import table_of
from stib_fast.training import (
    Optimisation,
    Run,
    SmilesModel,
    Table,
    TableConfig,
    TableData,
    Zinc,
    ZincConfig,
    experiment_of,
    train,
)
from stib_fast.training.molecule_data import invariance_rows

SMALL_MODEL = SmilesModel(
    z0_dim=4, z1_dim=2, feature_dim=2, hidden=(16,), channels=8, encoder_hidden=16,
    decoder_hidden=16, embedding_dim=4,
)  # fmt: skip


def chains(count: int) -> list[str]:
    """Different molecules; no two are one molecule read from either end."""
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        chain = "".join(draw.choices("CNO", k=draw.randint(2, 8)))
        found.setdefault(min(chain, chain[::-1]))
    return list(found)


def write_table(path, rows, header="structure,atoms,oxygens"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    rows = [f"{s},{len(s)}.5,{s.count('O') + 0.1 * len(s):.1f}" for s in chains(120)]
    return write_table(tmp_path / "table.csv", rows)


def small_config(path, *, steps=4, batch=16, evaluations=1, **molecules):
    data = {"smiles": "structure", "targets": ("atoms", "oxygens")} | molecules
    return TableConfig(
        data=str(path),
        molecules=TableData(**data),
        model=SMALL_MODEL,
        optimisation=Optimisation(steps=steps, batch=batch, evaluations=evaluations),
    )


def start(experiment, folder):
    run = Run(folder)
    run.create(experiment)
    return train(experiment, run), run


def test_any_columns_are_predicted_in_their_units(table, tmp_path):
    experiment = Table.from_file(small_config(table))
    model, run = start(experiment, tmp_path / "run")
    figures = experiment.evaluate(model)
    assert {
        "mae_atoms", "mae_oxygens", "r2_atoms", "r2_oxygens", "train_mae_atoms", "mi_bits",
    } <= set(figures)  # fmt: skip
    predicted = stib_fast.load(run.folder).predict(["CCO", "NCC"])
    assert predicted.shape == (2, 2)
    # Hardly trained: near the means of the columns, which differ by a factor of 5.
    means = experiment.encoded.targets.float().mean(0)
    torch.testing.assert_close(predicted, means.expand(2, 2), rtol=0.3, atol=0.0)


def test_share_of_variance_predicted(table):
    experiment = Table.from_file(small_config(table, targets=("atoms",)))
    model = experiment.model()
    data = experiment.encoded
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.zero_()  # predicts the mean of the training part
        figures = experiment.measure(model)
    followed = data.targets[data.validation_rows]
    off = (followed - data.standardiser.mean.double()).square().mean()
    assert figures["r2_atoms"] == pytest.approx(1 - float(off / followed.var(correction=0)))


def test_only_the_evaluation_sees_the_test_part(table, tmp_path):
    """Other strings and targets in it leave the training, and all it is followed by, as it was."""
    experiment = Table.from_file(small_config(table, evaluations=2))
    model, run = start(experiment, tmp_path / "a")
    header, *rows = table.read_text().splitlines()
    for row in experiment.encoded.test_rows.tolist():
        structure, atoms, oxygens = rows[row].split(",")
        rows[row] = f"{structure[::-1]},{1000 * float(atoms)},{-float(oxygens)}"
    other = Table.from_file(
        small_config(write_table(tmp_path / "other.csv", rows, header), evaluations=2)
    )
    assert not torch.equal(other.encoded.targets, experiment.encoded.targets)
    assert not torch.equal(other.encoded.ids, experiment.encoded.ids)
    other_model, other_run = start(other, tmp_path / "b")
    for (name, a), b in zip(
        model.state_dict().items(), other_model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name  # the standardiser's figures among them
    assert run.metrics.read_text() == other_run.metrics.read_text()
    figures, other_figures = experiment.evaluate(model), other.evaluate(model)
    assert other_figures["mae_atoms"] > 100 * figures["mae_atoms"]
    assert all(figures[k] == v for k, v in other_figures.items() if k.startswith("train_"))


def test_without_a_test_part_the_evaluation_is_of_the_validation_part(table, tmp_path):
    experiment = Table.from_file(small_config(table, test_fraction=0.0))
    model = experiment.model()
    data = experiment.encoded
    assert len(data.test_rows) == 0
    assert torch.equal(data.evaluated_rows, data.validation_rows)
    evaluated = experiment.evaluate(model)
    with torch.no_grad():
        along = experiment.measure(model)
    assert along == {name: evaluated[name] for name in along}
    run = Run(tmp_path / "run")
    run.create(experiment)
    run.write_evaluation(evaluated)
    assert table_of([run]).endswith("; no test part: validation molecules in its place.\n")


@pytest.mark.parametrize(
    ("kind", "towers"), [("stib", 2), ("stib-no-adv", 2), ("vae", 1), ("cvib", 1)]
)
def test_every_part_of_z_has_an_encoder(table, kind, towers):
    config = replace(small_config(table), model=replace(SMALL_MODEL, kind=kind))
    model = Table.from_file(config).model()
    names = {name.split(".")[1] for name in model.state_dict() if name.startswith("encoder.")}
    assert names == {str(number) for number in range(towers)}


@pytest.mark.parametrize(("batch", "features"), [(2, 1), (16, 2), (64, 4), (100, 5)])
def test_the_critic_is_no_wider_than_the_batch_allows(table, batch, features):
    config = small_config(table, batch=batch)
    experiment = Table.from_file(replace(config, model=replace(SMALL_MODEL, feature_dim=None)))
    assert experiment.model().critic.critic(torch.randn(8, 4)).shape == (8, features)
    # The bias of the estimate: at most 1/8 nat, but for batches that are hardly any.
    assert features**2 / (2 * batch) <= 1 / 8 or batch < 4


def test_the_rows_of_a_run_are_accounted_for(table, tmp_path, capsys):
    table.write_text(table.read_text() + "C1CC,3.5,1\nCCCl,x,1\n")
    experiment = Table.from_file(small_config(table))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{table}: of 122 rows left out 1 with a target that is not a finite number: "
        "row 122: 'x' in column 'atoms'",
        f"{table}: of 122 rows left out 1 with a SMILES that RDKit does not read: row 121: C1CC",
    ]
    assert "Cl" not in experiment.vocabulary.tokens
    run = Run(tmp_path / "run")
    run.create(experiment)
    report = json.loads((run.folder / "data.json").read_text())
    assert (report["read"], report["kept"]) == (122, 120)
    assert [note["count"] for note in report["left_out"]] == [1, 1]
    (run.folder / "data.json").write_text(json.dumps(report | {"kept": 121}))
    with pytest.raises(ValueError, match="gives 120 molecules, but 121 when the run"):
        experiment_of(run, with_data=True)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (chains(120), {"targets": ()}, "name the columns to predict"),
        (chains(20), {}, "20 usable rows are too few: at least 21 are needed for 1 targets"),
        (chains(22), {}, "20 training molecules are fewer than optimisation.batch 32; lower that"),
        ([f"{s},7" for s in chains(120)], {}, "'y' is 7 in all 108 training molecules; leave it"),
        (chains(30), {"test_fraction": 0.96}, "test_fraction 0.96 of 30 rows leave none to train"),
        ([f"{s},one" for s in chains(30)], {}, "column 'y' holds no number in 30 rows"),
        (chains(120), {"targets": ("z",)}, r"column 'z' is missing; there are \['s', 'y'\]"),
        (chains(120), {"max_length": 5, "strict": True}, "needs 6 positions"),
        (chains(120), {"max_length": 2}, "no usable row is left: 120 with tokens or a length"),
    ],
)
def test_tables_that_cannot_be_learnt_from(tmp_path, rows, settings, message):
    rows = [row if "," in row else f"{row},{i}" for i, row in enumerate(rows)]
    path = write_table(tmp_path / "t.csv", rows, "s,y")
    with pytest.raises(ValueError, match=message):
        Table.from_file(
            small_config(path, batch=32, **{"smiles": "s", "targets": ("y",)} | settings)
        )


def test_more_targets_than_rows(tmp_path):
    header = ",".join(["structure", *(f"y{i}" for i in range(40))])
    rows = [
        f"{s}," + ",".join(str(i + j * j % 7) for j in range(40)) for i, s in enumerate(chains(40))
    ]
    path = write_table(tmp_path / "t.csv", rows, header)
    with pytest.raises(ValueError, match="40 usable rows are too few: at least 41"):
        Table.from_file(small_config(path, targets=tuple(header.split(",")[1:])))


@pytest.mark.parametrize(("test_fraction", "part"), [(0.05, "test"), (0.0, "validation")])
def test_too_few_molecules_to_measure_invariance_on(table, monkeypatch, test_fraction, part):
    monkeypatch.setattr("stib_fast.training.molecule_data.INVARIANCE_WHOLE", 100)
    with pytest.raises(ValueError, match=rf" 6 {part} .*; raise molecules\.{part}_fraction"):
        Table.from_file(small_config(table, test_fraction=test_fraction))


def test_a_target_without_variance_where_invariance_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("stib_fast.training.molecule_data.INVARIANCE_WHOLE", 100)
    rare = [f"{s},{int(i == 0)}" for i, s in enumerate(chains(120))]
    path = write_table(tmp_path / "t.csv", rare, "s,y")
    message = r"'y' is 0 in all 24 test molecules .* raise molecules\.test_fraction"
    with pytest.raises(ValueError, match=message):
        Table.from_file(
            small_config(path, smiles="s", targets=("y",), test_fraction=0.2, split_seed=1)
        )


def test_too_few_molecules_to_evaluate(table, tmp_path):
    experiment = Table.from_file(small_config(table))
    small = write_table(tmp_path / "small.csv", ["CCO,1,1", "CNC,2,1"])
    with pytest.raises(ValueError, match=r"small.csv: 2 usable rows are too few: at least 21 are"):
        experiment.evaluate(experiment.model(), small)


def test_a_target_is_named_once():
    with pytest.raises(ValueError, match="target 'logP' is named more than once"):
        TableData(targets=("logP", "qed", "logP"))


def test_the_digest_is_never_half_a_file(table, tmp_path, monkeypatch):
    experiment = Table.from_file(small_config(table))
    written = []
    monkeypatch.setattr(
        "stib_fast.training.molecules.write_text", lambda path, text: written.append(path.name)
    )
    experiment.save_into(tmp_path)
    assert written == ["data.sha256", "data.json"]


def test_strings_that_are_too_long_are_left_out(table, capsys):
    experiment = Table.from_file(small_config(table, max_length=7))
    short = [s for s in chains(120) if len(s) <= 6]
    assert len(experiment.encoded.ids) == len(short)
    assert experiment.tokenizer.decode(experiment.encoded.ids[torch.arange(3)]) == short[:3]
    assert "needs 8 positions but max_length is 7" in capsys.readouterr().err


def test_evaluates_other_files_without_what_it_cannot_read(table, tmp_path, capsys):
    experiment = Table.from_file(small_config(table))
    model = experiment.model()
    rows = [f"{s},{i},{i % 7}" for i, s in enumerate(chains(60))]
    other = write_table(tmp_path / "other.csv", [*rows, "CBr,1,1"], "structure,atoms,oxygens")
    figures = experiment.evaluate(model, other)
    assert "token 'Br' at column 2 of 'CBr' is not in the vocabulary" in capsys.readouterr().err
    with torch.no_grad():
        predicted = model.targets.inverse(model.predict(experiment.inputs(chains(60))))
    error = (predicted[:, 0].double() - torch.arange(60)).abs().mean()
    # float32 predictions of about 5.
    assert figures["mae_atoms"] == pytest.approx(float(error), abs=1e-5)


def test_large_sets_are_measured_on_a_fixed_sample():
    test_rows = torch.arange(0, 60_000, 5)
    assert torch.equal(invariance_rows(test_rows[:500], 10_000), torch.arange(10_000))
    sample = invariance_rows(test_rows, 60_000)
    assert len(sample) == len(sample.unique()) == 5000
    assert set(sample.tolist()) <= set(test_rows.tolist())
    assert torch.equal(sample, invariance_rows(test_rows, 60_000))
    assert torch.equal(invariance_rows(test_rows[:600], 10_001), test_rows[:600])


# ---- token caches --------------------------------------------------------------------------------


def cache_of(table, folder, **settings):
    settings = {"smiles": "structure", "targets": ("atoms", "oxygens")} | settings
    write_token_cache(table, folder, CacheSettings(**settings))
    return folder


def test_a_cache_trains_the_same_model_as_its_file(table, tmp_path):
    from_table, _ = start(Table.from_file(small_config(table)), tmp_path / "a")
    folder = cache_of(table, tmp_path / "cache", rows_per_shard=50)
    experiment = Table.from_file(small_config(folder, targets=()))
    assert experiment.config.molecules.targets == ("atoms", "oxygens")
    from_cache, run = start(experiment, tmp_path / "b")
    for (name, a), b in zip(
        from_table.state_dict().items(), from_cache.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    again = experiment_of(run, with_data=True)
    assert again.evaluate(from_cache) == experiment.evaluate(from_cache)
    assert again.evaluate(from_cache, table)["mae_atoms"] > 0


def test_repeated_rows_of_a_cache_are_left_out(table, tmp_path, capsys):
    table.write_text(table.read_text() + f"{chains(120)[7]},1,1\nCCO,x,1\n")
    folder = cache_of(table, tmp_path / "cache", on_bad_target="drop")
    unchecked = small_config(folder, targets=("oxygens",), check=False)
    experiment = Table.from_file(unchecked)
    assert len(experiment.encoded.ids) == 120
    assert torch.equal(experiment.encoded.targets, TokenCache(folder).targets[:120, 1:])
    assert capsys.readouterr().err.splitlines() == [
        f"{folder}: of 122 rows left out 1 bad target",
        f"{folder}: of 122 rows left out 1 repeating a string: row 121",
    ]


def test_strict_reading_of_a_cache_refuses_rows_that_were_dropped_or_repeat(table, tmp_path):
    whole = cache_of(table, tmp_path / "whole")
    for check in (False, True):
        strict = {"targets": (), "strict": True, "check": check}
        assert len(Table.from_file(small_config(whole, **strict)).encoded.ids) == 120
    rows = table.read_text()
    table.write_text(f"{rows}CCO,x,1\nC[C,1,1\n")
    dropped = cache_of(table, tmp_path / "dropped", on_bad_target="drop", on_unknown="drop")
    table.write_text(f"{rows}{chains(120)[7]},1,1\n")
    repeated = cache_of(table, tmp_path / "repeated")
    for check, repeats in ((False, "1 repeating a string: row 121"), (True, "1 repeating a mol")):
        strict = {"targets": (), "strict": True, "check": check}
        with pytest.raises(ValueError, match="strict reading refuses were dropped") as error:
            Table.from_file(small_config(dropped, **strict))
        assert "1 bad target" in str(error.value)
        assert "1 malformed" in str(error.value)
        with pytest.raises(ValueError, match=f"strict reading refuses: {repeats}"):
            Table.from_file(small_config(repeated, **strict))


def test_rdkit_reads_a_cache_where_it_is_asked_to(table, tmp_path, capsys):
    chain = next(s for s in chains(120) if s != s[::-1])
    table.write_text(table.read_text() + f"CCO,x,1\n{chain[::-1]},1,1\nC1CC,1,1\n")
    folder = cache_of(table, tmp_path / "cache", on_bad_target="drop")
    config = small_config(folder, targets=(), check=True)
    from_cache = Table.from_file(config).encoded
    # Rows are those of the source, of which the 121st is not in the cache.
    assert capsys.readouterr().err.splitlines() == [
        f"{folder}: of 123 rows left out 1 bad target",
        f"{folder}: of 123 rows left out 1 with a SMILES that RDKit does not read: row 123: C1CC",
        f"{folder}: of 123 rows left out 1 repeating a molecule: row 122: {chain[::-1]} is that of "
        f"row {1 + chains(120).index(chain)}",
    ]
    cache = TokenCache(folder)
    assert torch.equal(from_cache.ids[torch.arange(120)], cache[torch.arange(120)].ids)
    assert torch.equal(from_cache.targets, cache.targets[:120])
    unchecked = replace(config, molecules=replace(config.molecules, check=False))
    assert len(Table.from_file(unchecked).encoded.ids) == 122


def test_a_cache_must_fit_the_model(table, tmp_path):
    folder = cache_of(table, tmp_path / "cache")
    experiment = Table.from_file(small_config(folder, targets=()))
    _, run = start(experiment, tmp_path / "run")
    model = experiment.model()
    longer = cache_of(table, tmp_path / "longer", max_length=30)
    with pytest.raises(ValueError, match=r"holds 30 tokens a string.* the model reads 9"):
        experiment.evaluate(model, longer)
    with pytest.raises(
        ValueError, match=r"target 'z' is missing; there are \['atoms', 'oxygens'\]"
    ):
        Table.from_file(small_config(folder, targets=("z",)))
    bare = cache_of(table, tmp_path / "bare", targets=())
    with pytest.raises(ValueError, match="holds no targets"):
        Table.from_file(small_config(bare, targets=()))
    other = write_table(tmp_path / "other.csv", [f"{s}Cl,1,{i}" for i, s in enumerate(chains(60))])
    with pytest.raises(ValueError, match="another vocabulary"):
        experiment.evaluate(model, cache_of(other, tmp_path / "other"))
    shutil.rmtree(folder)
    cache_of(other, folder)
    with pytest.raises(ValueError, match="has changed since the run"):
        experiment_of(run, with_data=True)


# ---- the real molecules --------------------------------------------------------------------------


@pytest.mark.data
def test_real_zinc(data_dir, tmp_path):
    """The first 2,000 molecules: it learns more than the likeliest token of each position."""
    with gzip.open(data_dir / "zinc250k.csv.gz", "rt") as whole:
        lines = [next(whole) for _ in range(2001)]
    (tmp_path / "zinc.csv").write_text("".join(lines))
    config = ZincConfig(
        data=str(tmp_path / "zinc.csv"),
        model=replace(SMALL_MODEL, channels=16, decoder_hidden=48, encoder_hidden=64),
    )
    settings = replace(config.optimisation, steps=120, batch=64, evaluations=1, warmup=10)
    config = replace(config, optimisation=settings)
    experiment = Zinc.from_file(config)
    assert len(experiment.encoded.ids) == 2000
    model, run = start(experiment, tmp_path / "run")
    with torch.no_grad():
        figures = experiment.measure(model)
    data = experiment.encoded
    followed = data.ids[data.validation_rows]
    likeliest = data.ids[data.train_rows].mode(0).values.expand_as(followed)
    blind = token_accuracy(likeliest, followed, experiment.vocabulary.pad_id)
    assert figures["token_accuracy"] > blind
    # In QED's own units, and hardly worse than the mean.
    qed = data.targets[data.validation_rows]
    assert figures["mae_qed"] < 1.2 * float((qed - qed.mean()).abs().mean())
    strings = [line.split(",")[0] for line in lines[1:4]]
    assert stib_fast.load(run.folder).predict(strings).shape == (3, 1)
