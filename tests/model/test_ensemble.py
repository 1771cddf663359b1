"""Several models taken together predict their mean, and say how far they are apart."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_crystals import SIZE, SMALL, cif_of, toy_crystals, toy_dataset, toy_model

from sitenet import explain, find_pairs, load
from sitenet.inference.evaluate import evaluate
from sitenet.inference.predict import outputs
from sitenet.inference.predict_files import predict_files
from sitenet.model.checkpoint import read_metadata
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import Target
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.maker import pair_options
from sitenet.system.files import locked
from sitenet.training.train import train
from sitenet.training.trainer import MODEL

FAST = SMALL.replace(
    scale_site_features=True,
    batch_sites=0,
    batch_crystals=4,
    learning_rate=1e-2,
    epochs=2,
    scale_targets=True,
    valid=0.2,
    test=0.2,
)
CRYSTALS = toy_crystals(8, seed=5)


@pytest.fixture(scope="module")
def ensemble():
    return toy_model(members=3)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows_of(model, folder, crystals=CRYSTALS):
    """What a batch says of each crystal: prediction, low, high; and all of it."""
    paths = [folder / f"{k}.cif" for k in range(len(crystals))]
    for path, crystal in zip(paths, crystals, strict=True):
        path.write_text(cif_of(crystal))
    rows = predict_files(model, paths).rows
    return np.array([row[2:5] for row in rows], dtype=float), rows


@pytest.mark.parametrize("kind", ["value", "class"])
def test_it_predicts_the_mean(kind):
    model = toy_model([Target("a", kind=kind), Target("b")], members=3)
    each = np.stack([m.predict(CRYSTALS) for m in model.members])
    assert each.std(0).min() > 1e-4
    np.testing.assert_allclose(model.predict(CRYSTALS), each.mean(0), rtol=1e-5, atol=1e-6)
    encodings = torch.as_tensor(np.stack([e for _, e in outputs(model, CRYSTALS)]))
    assert encodings.shape == (8, model.encoding_size) == (8, 3 * 6)
    primitive = np.stack([[y for y, _ in outputs(m, CRYSTALS)] for m in model.members])
    np.testing.assert_allclose(model.spread(encodings), primitive.std(0, ddof=1), rtol=1e-3)
    if kind == "value":
        pairs = find_pairs(CRYSTALS[0], **pair_options(model.config))
        np.testing.assert_allclose(model(pairs).detach()[0], primitive.mean(0)[0], rtol=1e-4)


@pytest.mark.parametrize("last", ["relu", "trelu", "softplus"])
def test_the_mean_is_taken_before_the_last_activation(last):
    """A member's value below 0 balances another's above it; intervals start from the members'
    own predictions."""
    members = [toy_model(seed=k) for k in range(2)]
    for member, bias in zip(members, (-0.5, 0.3), strict=True):
        member.config = member.config.replace(last_activation=last)
        torch.nn.init.zeros_(member.decoder.weight)
        torch.nn.init.constant_(member.decoder.bias, bias)
    model = Ensemble(members)
    want = np.log1p(np.exp(-0.1)) if last == "softplus" else 0.0
    np.testing.assert_allclose(model.predict(CRYSTALS), want, rtol=1e-6)
    pairs = find_pairs(CRYSTALS[0], **pair_options(model.config))
    assert model(pairs).item() == pytest.approx(want, rel=1e-6)
    each = [member.predict(CRYSTALS[0])[0] for member in members]
    spread = model.spread(torch.zeros(1, model.encoding_size)).item()
    assert spread == pytest.approx(np.std(each, ddof=1), rel=1e-5)


def test_row_by_row_is_the_same(ensemble):
    finder = PairFinder(CRYSTALS[0], **pair_options(ensemble.config))
    encoding = ensemble.encode_by_rows(finder, max_pairs=7)
    ((_, want),) = outputs(ensemble, CRYSTALS[:1])
    np.testing.assert_allclose(encoding[0], want, rtol=1e-4, atol=1e-5)


def test_members_must_be_alike():
    with pytest.raises(ValueError, match="two members or more, got 1"):
        Ensemble([toy_model()])
    with pytest.raises(ValueError, match="member 2 of the ensemble has other targets"):
        Ensemble([toy_model(), toy_model([Target("other")])])
    other = toy_model()
    other.config = other.config.replace(tolerance=1e-2)
    with pytest.raises(ValueError, match="member 3 of the ensemble has another config"):
        Ensemble([toy_model(), toy_model(seed=1), other])
    other.config = toy_model().config.replace(epochs=7)
    Ensemble([toy_model(), other])


def test_saved_and_loaded(ensemble, tmp_path):
    ensemble.save(tmp_path / "m.safetensors", {"note": "x"})
    again = load(tmp_path / "m.safetensors")
    assert isinstance(again, Ensemble) and same(again, ensemble)
    assert again.config == ensemble.config and again.targets == ensemble.targets
    header = read_metadata(tmp_path / "m.safetensors")
    assert (header["format"], header["members"]) == (3, 3)
    (want, rows), (got, others) = (rows_of(m, tmp_path) for m in (ensemble, again))
    np.testing.assert_allclose(got, want, rtol=1e-6)  # a calibration is kept in float32
    assert [row[5] for row in rows] == [row[5] for row in others]
    for model, number in ((toy_model(members=2), 2), (toy_model(), 1)):  # older versions read it
        model.calibration = None
        model.save(tmp_path / "plain.safetensors")
        assert read_metadata(tmp_path / "plain.safetensors")["format"] == number


def test_intervals_are_of_each_crystal(ensemble, tmp_path):
    data = toy_dataset(10, seed=5)
    rows, _ = rows_of(ensemble, tmp_path, data.crystals)
    width = (rows[:, 2] - rows[:, 1]) / 2
    encodings = torch.as_tensor(np.stack([e for _, e in outputs(ensemble, data.crystals)]))
    apart = ensemble.spread(encodings).numpy()[:, 0]
    factor = ensemble.calibration.half_width(0.9, np.zeros((1, 1)))[0, 0]
    floor = ensemble.calibration.floor[0]
    np.testing.assert_allclose(width, factor / floor * (apart + floor), rtol=1e-3)
    assert width.max() > 1.2 * width.min()
    found, _ = evaluate(ensemble, data)
    np.testing.assert_allclose(found.half_width[:, 0], width, rtol=1e-3)
    scores = found.scores()["all"]["size_A"]
    assert scores["interval"] == pytest.approx(width.mean(), rel=1e-3)
    inside = np.abs(found.values - found.truth)[:, 0] <= width
    assert scores["coverage"] == pytest.approx(inside.mean())


def test_it_explains_the_blocks_of_all_members(ensemble):
    found = explain(ensemble, CRYSTALS[0])
    assert found.weights.shape[1:] == (6, 2)
    for k, member in enumerate(ensemble.members):
        one = explain(member, CRYSTALS[0])
        np.testing.assert_allclose(found.weights[:, 2 * k : 2 * k + 2], one.weights, atol=1e-6)
    assert found.predicted[0] == pytest.approx(ensemble.predict(CRYSTALS[0])[0], rel=1e-5)
    dataset = explain(ensemble, CRYSTALS)
    assert dataset.by_distance.self_attention.shape == (6, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    result = train(toy_dataset(30), folder, FAST, members=2)
    return folder, result


def test_training_leaves_members_and_their_ensemble(trained):
    folder, result = trained
    assert isinstance(result.model, Ensemble) and len(result.model.members) == 2
    assert [(h["member"], h["epoch"]) for h in result.history] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for k, member in enumerate(result.model.members, 1):
        place = folder / f"member-{k}"
        assert same(load(place / "model.safetensors"), member)
        assert len((place / "metrics.jsonl").read_text().splitlines()) == 2
    model = load(folder / "model.safetensors")
    assert same(model, result.model) and model.calibration is not None
    facts = read_metadata(folder / "model.safetensors")["metadata"]
    assert len(facts["epoch"]) == 2 and facts["scores"] == json.loads(json.dumps(result.scores))
    data = toy_dataset(30)
    with open(folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"valid", "test"} and len(rows) == 12
    y = model.predict([data.crystals[data.ids.index(row["id"])] for row in rows])
    got = [float(row["size_A_predicted"]) for row in rows]
    np.testing.assert_allclose(got, y, rtol=1e-4)
    assert (folder / "parity.png").exists() and (folder / "left_out.csv").exists()


def test_members_are_single_runs_of_one_split(trained):
    """The first member is what a single run gives; the second differs by its seed alone."""
    _, result = trained
    single = train(toy_dataset(30), config=FAST)
    assert same(single.model, result.model.members[0])
    assert not same(single.model, result.model.members[1])
    counts = {k: v["size_A"]["crystals"] for k, v in result.scores.items()}
    assert counts == {k: v["size_A"]["crystals"] for k, v in single.scores.items()}
    assert result.scores["test"]["size_A"]["mae_of_mean"] == pytest.approx(
        single.scores["test"]["size_A"]["mae_of_mean"]
    )


def test_a_stopped_ensemble_goes_on(trained, tmp_path):
    """Stopped in the second member: the first is not trained again, and the bits are the same."""
    _, whole = trained
    seen = []

    def stop(entry):
        seen.append(entry["epoch"])
        if len(seen) == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(toy_dataset(30), tmp_path / "run", FAST, members=2, after_epoch=stop)
    again = []
    result = train(
        toy_dataset(30),
        tmp_path / "run",
        FAST,
        members=2,
        after_epoch=lambda entry: again.append(entry["epoch"]),
    )
    assert seen == [1, 2, 1] and again == [2]
    assert same(result.model, whole.model) and result.scores == whole.scores


def test_every_member_is_fine_tuned(trained, tmp_path):
    _, whole = trained
    result = train(toy_dataset(20, seed=3), config=FAST, start=whole.model, epochs=1, freeze=True)
    for tuned, before in zip(result.model.members, whole.model.members, strict=True):
        assert torch.equal(tuned.site_layer.linear.weight, before.site_layer.linear.weight)
        assert not torch.equal(tuned.decoder.weight, before.decoder.weight)
    with pytest.raises(ValueError, match="has 2 members, not 3"):
        train(toy_dataset(20), config=FAST, start=whole.model, members=3)


def test_members_begin_as_models_of_their_own(trained, tmp_path):
    """Learned from other data, their decoders are in other scales: the ensemble has the first's."""
    first, _ = trained[1].model.members
    data = toy_dataset(20, seed=3)
    other = train(replace(data, targets=3 * data.targets + 1), config=FAST, seed=9).model
    other.save(tmp_path / "other.safetensors")
    assert other.targets[0].std > 2 * first.targets[0].std
    files = [first, tmp_path / "other.safetensors"]
    result = train(data, config=FAST, start=files, learning_rate=1e-12, epochs=1)
    assert result.model.targets == first.targets
    for member, model in zip(result.model.members, (first, other), strict=True):
        np.testing.assert_allclose(member.predict(CRYSTALS), model.predict(CRYSTALS), rtol=1e-5)
    other.config = other.config.replace(pooling="max")
    with pytest.raises(ValueError, match="model 2 to start from has another config"):
        train(data, config=FAST, start=[first, other])
    train(data, config=FAST, start=[first, other], pooling="mean", epochs=1)


def test_members_are_trained_by_processes_of_their_own(trained, tmp_path):
    """And put together they are what one process trains."""
    _, whole = trained
    options = {"data": toy_dataset(30), "out": tmp_path, "config": FAST, "members": 2}
    for number in (2, 1):
        alone = train(**options, member=number)
        assert alone.folder == tmp_path / f"member-{number}" and not alone.scores
        assert same(alone.model, whole.model.members[number - 1])
    assert not (tmp_path / "model.safetensors").exists()
    with locked(tmp_path / "member-2/.lock"), pytest.raises(ValueError, match="another process"):
        train(**options)
    again = []
    result = train(**options, after_epoch=again.append)
    assert not again and same(result.model, whole.model) and result.scores == whole.scores


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"member": 3, "members": 2}, "no member 3: the ensemble has 2"),
        ({"member": 1}, "no member 1: the ensemble has 1"),
        ({"member": 1, "members": 2, "out": None}, "a member alone needs a run folder"),
    ],
)
def test_members_that_cannot_be_trained_alone(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        train(toy_dataset(12), **{"out": tmp_path / "run", "config": FAST} | options)


def test_one_model_and_an_ensemble_share_no_folder(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="holds a run of an ensemble, this is one of a single"):
        train(toy_dataset(30), folder, FAST)
    train(toy_dataset(30), tmp_path / "one", FAST, epochs=1)
    with pytest.raises(ValueError, match="holds a run of a single model, this is one of an ens"):
        train(toy_dataset(30), tmp_path / "one", FAST, epochs=1, members=2)


def test_a_gap_has_no_interval_below_zero(tmp_path):
    """Where a model predicts nothing below 0, intervals end there; elsewhere they do not."""
    for last, lowest in (("trelu", 0.0), ("identity", -np.inf)):
        model = toy_model([SIZE])
        model.config = model.config.replace(last_activation=last)
        assert model.lowest == lowest
        rows, _ = rows_of(model, tmp_path)
        half = model.calibration.half_width(0.9)[0]
        np.testing.assert_allclose(rows[:, 1], np.maximum(rows[:, 0] - half, lowest), rtol=1e-5)
        np.testing.assert_allclose(rows[:, 2], rows[:, 0] + half, rtol=1e-5)
        assert (rows[:, 0] - half).min() < 0


def test_the_command_line_takes_members(tmp_path, capsys):
    from sitenet.cli.app import main

    def train_by_command(*options):
        with pytest.raises(SystemExit) as exit:
            main(["train", str(tmp_path), "--epochs", "1", "--config", config, *options])
        assert exit.value.code == 0
        return capsys.readouterr()

    for c in toy_crystals(12):
        (tmp_path / f"{c.name}.cif").write_text(cif_of(c))
    table = "".join(f"c{k},{k}\n" for k in range(12))
    (tmp_path / "id_prop.csv").write_text("id,size\n" + table)
    settings = {"hidden": [7], "pre_pool": [6], "post_pool": [6], "heads": 2, "site_dim": 4}
    config, run = f"{tmp_path}/c.yaml", tmp_path / "r"
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    options = ["--members", "2", "--out", str(run)]
    said = train_by_command(*options, "--member", "2", "--json")
    assert json.loads(said.out) == {"member": 2, "out": f"{run}/member-2"}
    assert "member 2 of 2: " in said.err and f"member 2 is in {run}/member-2" in said.err
    assert not (run / "member-1").exists() and not (run / MODEL).exists()
    train_by_command(*options)
    assert isinstance(load(run / MODEL), Ensemble)
    files = [f"{run}/member-2/{MODEL}", f"{run}/{MODEL}"]
    train_by_command("--start", files[0], "--start", files[1], "--out", f"{tmp_path}/three")
    assert len(load(tmp_path / "three" / MODEL).members) == 3
