"""The estimators pass scikit-learn's checks, work in its tools, and take all kinds of X."""

import dataclasses
import importlib
import pickle
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data

from sitenet.config import SiteNetConfig, TrainingConfig
from sitenet.crystal.crystal import Crystal, read_cif
from sitenet.estimator import SiteNetClassifier, SiteNetRegressor
from sitenet.training.train import train

TINY = {
    "embedding": 4,
    "heads": 1,
    "blocks": 1,
    "site_dim": 6,
    "interaction_dim": 6,
    "hidden": [6],
    "pre_pool": [6],
    "post_pool": [8],
    "max_sites": 0,
    "last_activation": "identity",
    "training": {"epochs": 1},
}
EDGES = np.linspace(4, 6, 12)


def rocksalt(edge, atoms=(11, 17)):
    return Crystal(edge * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], list(atoms))


CIF = """data_x
_cell_length_a {0}
_cell_length_b {0}
_cell_length_c {0}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na 0 0 0
Cl 0.5 0.5 0.5
"""
CRYSTALS = list(map(rocksalt, EDGES))


# ---------------------------------------------------------------------------------------------
# scikit-learn's checks


class _OfNumbers:
    """Makes a crystal from each row of numbers, as the checks have no structures."""

    def _listed(self, X):
        X = validate_data(self, X, reset=not hasattr(self, "model_"), dtype=np.float64)
        return [rocksalt(4 + abs(row.sum()) % 2) for row in X]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        for kind in (tags.regressor_tags, tags.classifier_tags):
            if kind is not None:
                kind.poor_score = True
        return tags


class RegressorOfNumbers(_OfNumbers, SiteNetRegressor):
    pass


class ClassifierOfNumbers(_OfNumbers, SiteNetClassifier):
    pass


# Checked here with other means: X is no array; and sums in single precision depend on what else is
# in a batch, by more or less than the 1e-7 of the checks, depending on the machine (see
# test_predictions_depend_on_no_other_structure).
REPLACED = {
    "check_array_api_input",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
}
# Checks of X as a table of numbers - its dtype, NaN, sparseness, number of features - test
# _OfNumbers above, as they cannot apply to structures.


def _checks():
    for estimator in (RegressorOfNumbers(TINY), ClassifierOfNumbers(TINY)):
        for each, check in estimator_checks_generator(estimator):
            name = check.func.__name__
            if name not in REPLACED:
                id = f"{type(each).__name__}-{name}-{len(check.keywords)}"
                yield pytest.param(each, check, id=id)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("estimator, check", list(_checks()))
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_depend_on_no_other_structure(seed):
    """Alone, in subsets and in another order, but for the order of sums: no value passes through
    more than some 10 sums of at most 30 terms, so 300 roundings of single precision, relative to
    the largest value; 1000 leave room for the layer norms."""
    rng = np.random.default_rng(seed)
    regressor = SiteNetRegressor(TINY, random_state=seed).fit(CRYSTALS, EDGES)
    classifier = SiteNetClassifier(TINY, random_state=seed).fit(CRYSTALS, EDGES > 5)
    for predict in (regressor.predict, classifier.predict_proba):
        y = predict(CRYSTALS)
        tolerance = 1000 * 2**-24 * np.abs(y).max()
        order = rng.permutation(len(CRYSTALS))
        for part in (order, order[:5], order[:1]):
            got = predict([CRYSTALS[k] for k in part])
            np.testing.assert_allclose(got, y[part], rtol=0, atol=tolerance)


def test_skipped_as_they_are_for_x_is_no_table():
    with pytest.warns(match="Can't test estimator"):
        assert len(list(estimator_checks_generator(SiteNetRegressor(TINY)))) == 1


def test_missing_package_is_named(monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sitenet.estimator")
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[sklearn\]'"):
        importlib.import_module("sitenet.estimator")


# ---------------------------------------------------------------------------------------------
# Tools of scikit-learn


def test_cross_validation_grid_search_and_pipeline():
    y = EDGES - 5
    model = SiteNetRegressor(TINY)
    assert cross_val_score(model, CRYSTALS, y, cv=3).shape == (3,)
    assert cross_val_predict(model, np.array(CRYSTALS, dtype=object), y, cv=2).shape == (12,)
    search = GridSearchCV(model, {"learning_rate": [1e-3, 1e-2], "ema": [0.0, 0.5]}, cv=2)
    search.fit(CRYSTALS, y)
    assert search.best_estimator_.predict(CRYSTALS[:2]).shape == (2,)
    scale = FunctionTransformer(lambda edges: [rocksalt(e) for e in edges])
    pipeline = make_pipeline(scale, SiteNetRegressor(TINY)).fit(EDGES, y)
    assert np.isfinite(pipeline.score(EDGES, y))


@pytest.mark.slow
def test_learns():
    y = EDGES - 5
    settings = {"epochs": 50, "learning_rate": 1e-2, "batch_sites": 8, "schedule": "cosine"}
    settings["random_state"] = 1
    model = SiteNetRegressor(TINY, **settings).fit(CRYSTALS, y)
    assert model.score(CRYSTALS, y) > 0.8
    assert len(model.history_) == 50 and "valid_mae" not in model.history_[0]
    atoms = {"salt": (11, 17), "lime": (20, 8), "carborundum": (14, 6)}
    labels = np.array(list(atoms))[np.arange(12) % 3]
    crystals = [rocksalt(e, atoms[name]) for e, name in zip(EDGES, labels, strict=True)]
    classifier = SiteNetClassifier(TINY, **settings).fit(crystals, labels)
    assert classifier.score(crystals, labels) == 1
    assert classifier.classes_.tolist() == sorted(atoms)
    proba = classifier.predict_proba(crystals)
    np.testing.assert_allclose(proba.sum(1), 1)


def test_two_classes_are_one_logit():
    labels = EDGES > 5
    model = SiteNetClassifier(TINY, epochs=2).fit(CRYSTALS, labels)
    proba = model.predict_proba(CRYSTALS)
    assert [t.name for t in model.model_.targets] == ["True"]
    np.testing.assert_allclose(proba[:, 1], model.model_.predict(CRYSTALS))
    assert (model.predict(CRYSTALS) == (proba[:, 1] > 0.5)).all()


def test_several_targets_with_units_and_missing_values():
    pandas = pytest.importorskip("pandas")
    y = pandas.DataFrame({"gap_eV": EDGES, "volume_A3": EDGES**3})
    y.iloc[0, 1] = np.nan
    model = SiteNetRegressor(TINY).fit(pandas.Series(CRYSTALS), y)
    assert [(t.name, t.unit) for t in model.model_.targets] == [
        ("gap_eV", "eV"),
        ("volume_A3", "Å³"),
    ]
    assert model.predict(CRYSTALS[:3]).shape == (3, 2)
    one = SiteNetRegressor(TINY).fit(CRYSTALS, y[["gap_eV"]])
    assert one.predict(CRYSTALS[:3]).shape == (3, 1)
    assert SiteNetRegressor(TINY).fit(CRYSTALS, y["gap_eV"]).model_.targets[0].name == "gap_eV"


# ---------------------------------------------------------------------------------------------
# X and parameters


def test_all_kinds_of_structures(tmp_path):
    core, ase = pytest.importorskip("pymatgen.core"), pytest.importorskip("ase")
    (tmp_path / "x.cif").write_text(CIF.format(4.5))
    lattice = core.Lattice.cubic(4.5)
    cell = {"cell": [4.5] * 3, "pbc": True}
    kinds = [
        CIF.format(4.5),
        tmp_path / "x.cif",
        str(tmp_path / "x.cif"),
        rocksalt(4.5),
        core.Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]),
        ase.Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5] * 3], **cell),
    ]
    model = SiteNetRegressor(TINY).fit(kinds, np.arange(6))
    predicted = model.predict(kinds)
    np.testing.assert_allclose(predicted, predicted[0], rtol=1e-6)
    column = np.empty((6, 1), dtype=object)
    column[:, 0] = kinds
    np.testing.assert_array_equal(model.predict(column), predicted)
    for one in kinds:
        with pytest.raises(TypeError, match="a list of structures, got one"):
            model.predict(one)
    with pytest.raises(TypeError, match="structure 1 of X: expected a Crystal, a path"):
        model.predict([rocksalt(4.5), 1.5])
    with pytest.raises(ValueError, match="structure 0 of X: "):
        model.predict(["data_x\n_cell_length_a 3\n"])
    with pytest.raises(ValueError, match=r"array of shape \(2, 3\)"):
        model.predict(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="0 structures"):
        model.predict([])


def test_reads_in_processes():
    texts = [CIF.format(e) for e in EDGES]
    model = SiteNetRegressor(TINY, workers=2).fit(texts, EDGES)
    one = SiteNetRegressor(TINY, workers=1).fit([read_cif(t) for t in texts], EDGES)
    np.testing.assert_array_equal(model.predict(texts), one.predict(texts))


def test_training_is_that_of_train(tmp_path):
    """The same bits as sitenet.train on a table of these crystals, with nothing written."""
    model = SiteNetRegressor(TINY, valid=0.25, epochs=3, random_state=5, verbose=True)
    model.fit(CRYSTALS, EDGES)
    (tmp_path / "targets.csv").write_text(
        "id,gap\n" + "".join(f"{k},{e!r}\n" for k, e in enumerate(EDGES.tolist()))
    )
    for k, edge in enumerate(EDGES.tolist()):
        (tmp_path / f"{k}.cif").write_text(CIF.format(edge))
    seed = np.random.RandomState(5).randint(2**31 - 1)
    result = train(tmp_path, None, TINY, valid=0.25, test=0, epochs=3, seed=int(seed))
    for name, value in result.model.state_dict().items():
        assert (model.model_.state_dict()[name] == value).all(), name
    assert [e["valid_mae"] for e in model.history_] == [e["valid_mae"] for e in result.history]


def test_random_state_and_clone():
    a, b, c = (SiteNetRegressor(TINY, random_state=k).fit(CRYSTALS, EDGES) for k in (1, 1, 2))
    np.testing.assert_array_equal(a.predict(CRYSTALS), b.predict(CRYSTALS))
    assert (a.predict(CRYSTALS) != c.predict(CRYSTALS)).any()
    copy = clone(a)
    assert copy.get_params()["random_state"] == 1 and not hasattr(copy, "model_")
    again = pickle.loads(pickle.dumps(a))
    np.testing.assert_array_equal(again.predict(CRYSTALS), a.predict(CRYSTALS))


def test_every_field_of_the_config_is_a_parameter():
    names = [f.name for cls in (SiteNetConfig, TrainingConfig) for f in dataclasses.fields(cls)]
    fields = set(names) - {"training"}
    unset = {name: value for name, value in TINY.items() if name not in ("blocks", "training")}
    model = SiteNetRegressor(unset, blocks=2, hidden=(5,), epochs=2, batch_sites=4, seed=3)
    assert fields <= set(model.get_params())
    copy = clone(model).set_params(heads=2, schedule="cosine", members=2)
    assert copy.get_params() == model.get_params() | {
        "heads": 2,
        "schedule": "cosine",
        "members": 2,
    }
    config = copy.fit(CRYSTALS, EDGES).model_.config
    assert (config.blocks, config.heads, config.hidden) == (2, 2, (5,))
    chosen = config.training
    assert (chosen.epochs, chosen.schedule, chosen.seed) == (2, "cosine", 3)
    search = GridSearchCV(SiteNetRegressor(TINY), {"blocks": [1, 2]}, cv=2).fit(CRYSTALS, EDGES)
    assert search.best_estimator_.model_.config.blocks == search.best_params_["blocks"]
    with pytest.raises(TypeError, match=r"'block' in SiteNetRegressor; did you mean 'blocks'"):
        SiteNetRegressor(block=2)
    with pytest.raises(ValueError, match="heads must be at least 1"):
        SiteNetRegressor(TINY, heads=0).fit(CRYSTALS, EDGES)


def test_standard_deviations():
    y = np.random.default_rng(0).normal(size=12)
    model = SiteNetRegressor(TINY, valid=0.5, random_state=0).fit(CRYSTALS, y)
    values, std = model.predict(CRYSTALS, return_std=True)
    np.testing.assert_array_equal(values, model.predict(CRYSTALS))
    assert std.shape == (12,) and np.isfinite(std).all() and std.min() > 0
    assert std[0] == pytest.approx(model.model_.calibration.half_width(0.6827)[0])
    ensemble = SiteNetRegressor(TINY, members=2).fit(CRYSTALS, np.stack([y, y], 1))
    values, std = ensemble.predict(CRYSTALS[:3], return_std=True)
    assert values.shape == std.shape == (3, 2) and std.min() > 0
    with pytest.raises(ValueError, match=r"such as valid=0\.1"):
        SiteNetRegressor(TINY).fit(CRYSTALS, y).predict(CRYSTALS, return_std=True)


def test_encodings():
    model = SiteNetRegressor(TINY).fit(CRYSTALS, EDGES)
    encodings = model.encode(CRYSTALS)
    assert encodings.shape == (12, model.model_.encoding_size)
    decoded = model.model_.properties(torch.as_tensor(encodings)).detach().numpy()[:, 0]
    np.testing.assert_allclose(decoded, model.predict(CRYSTALS), rtol=1e-5)


def test_goes_on_from_a_model(tmp_path):
    first = SiteNetRegressor(TINY, epochs=2).fit(CRYSTALS, EDGES)
    first.model_.save(tmp_path / "m.safetensors")
    frozen = {"freeze": True, "learning_rate": 1e-2}
    second = SiteNetRegressor(TINY, start=tmp_path / "m.safetensors", **frozen)
    second.fit(CRYSTALS, EDGES)
    before, after = first.model_.state_dict(), second.model_.state_dict()
    assert (before["site_layer.linear.weight"] == after["site_layer.linear.weight"]).all()
    assert (before["decoder.weight"] != after["decoder.weight"]).any()


def test_parameters_are_checked_as_the_config_does():
    for wrong, text in (
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"config": "papers"}, "no config named 'papers'"),
    ):
        with pytest.raises(ValueError, match=text):
            SiteNetRegressor(**{"config": TINY} | wrong).fit(CRYSTALS, EDGES)


def test_negative_values_are_learned():
    """Unless the config sets an activation that cannot predict them."""
    unset = {k: v for k, v in TINY.items() if k != "last_activation"}
    y = EDGES - 5
    assert SiteNetRegressor(unset).fit(CRYSTALS, y).model_.config.last_activation == "identity"
    assert SiteNetRegressor(unset).fit(CRYSTALS, y + 9).model_.config.last_activation == "trelu"
    with pytest.warns(UserWarning, match="last_activation: trelu cannot predict"):
        SiteNetRegressor(unset | {"last_activation": "trelu"}).fit(CRYSTALS, y)


def test_standardised_values_are_learned():
    """When a scikit-learn transformer standardises them."""
    unset = {k: v for k, v in TINY.items() if k != "last_activation"}
    model = SiteNetRegressor(unset, epochs=30, learning_rate=1e-2, random_state=1)
    scaled = TransformedTargetRegressor(model, transformer=StandardScaler())
    scaled.fit(np.array(CRYSTALS, dtype=object), EDGES)
    assert (scaled.predict(np.array(CRYSTALS, dtype=object)) < EDGES.mean()).any()


def test_the_model_keeps_how_structures_are_read():
    model = SiteNetRegressor(TINY, primitive=False, disorder="average").fit(CRYSTALS, EDGES)
    assert (model.model_.config.primitive, model.model_.config.disorder) == (False, "average")
