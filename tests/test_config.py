"""Configs: named ones, YAML files, published keys, and errors that name the key."""

import dataclasses

import numpy as np
import pytest
import yaml

from sitenet.config import InteractionFeature, SiteNetConfig, config_names, load_config

PUBLISHED = yaml.safe_load("""
label: PaperParams
interaction_feature_size: 2
Interaction_Features:
- {name: distance_matrix, kwargs: {polynomial_degree: 1}}
- {name: non_sine_coulomb_matrix, kwargs: {polynomial_degree: 1, log: true, max_clip: 10}}
site_feature_size: 8
embedding_size: 92
Site_Features:
- name: SiteElementalProperty
  Featurizer_PArgs: []
  Featurizer_KArgs:
    properties: [Number, AtomicWeight, Row, Column, FirstIonizationEnergy, Electronegativity,
      AtomicRadius, Density]
dynamic_batch: true
Batch_Size: 1200
Learning_Rate: 0.0008125971481941902
Optimizer: {Name: AdamW, Kwargs: {amsgrad: true, eps: 1.0e-07, weight_decay: 0.0001}}
Trainer kwargs: {accumulate_grad_batches: 1, auto_lr_find: false, max_epochs: 100000000}
Max_Samples: 1000000000
activation_function: mish
set_norm: layer
lin_norm: layer
site_dim_per_head: 30
attention_dim_interaction: 16
attention_heads: 3
attention_blocks: 2
distance_cutoff: -1
attention_hidden_layers: [225]
k_softmax: -1
pre_pool_layers: [94]
sym_func: mean
post_pool_layers: [200, 200, 200]
last_af_func: TReLU
""")


def test_paper_is_the_published_config_and_the_default():
    assert load_config("paper") == load_config(PUBLISHED) == SiteNetConfig()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper-small", {"Max_Samples": 1000}),
        ("paper-medium", {"Max_Samples": 10_000}),
        ("paper-cutoff5", {"distance_cutoff": 5}),
        ("paper-small-cutoff5", {"distance_cutoff": 5, "Max_Samples": 1000}),
        ("paper-medium-cutoff5", {"distance_cutoff": 5, "Max_Samples": 10_000}),
        ("paper-eform", {"last_af_func": "identity"}),
    ],
)
def test_named_configs_are_the_published_kinds(name, changes, tmp_path):
    assert load_config(name) == load_config(PUBLISHED | changes)
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(PUBLISHED | changes))
    assert load_config(path) == load_config(name)


def test_every_named_config_survives_yaml(tmp_path):
    for name in config_names():
        config = load_config(name)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config.to_dict()))
        assert load_config(path) == config


def test_absent_published_keys_have_the_published_defaults():
    config = load_config({"attention_heads": 2})
    assert (config.embedding, config.blocks, config.heads) == (100, 4, 2)
    assert (config.site_dim, config.interaction_dim) == (64, 64)
    assert (config.hidden, config.post_pool, config.activation) == ((256, 256), (256, 256), "relu")
    assert (config.norm, config.post_pool_norm, config.pooling) == ("none", "none", "mean")


def test_fixed_number_of_crystals_a_batch():
    training = load_config(PUBLISHED | {"dynamic_batch": False, "Batch_Size": 18}).training
    assert (training.batch_sites, training.batch_crystals) == (0, 18)


def test_three_interaction_features():
    features = [*PUBLISHED["Interaction_Features"], {"name": "reciprocal_square_distance_matrix"}]
    config = load_config(
        PUBLISHED | {"Interaction_Features": features, "interaction_feature_size": 3}
    )
    assert config.interaction_features[2] == InteractionFeature("reciprocal_square_distance_matrix")
    by_size = {k: v for k, v in PUBLISHED.items() if k != "Interaction_Features"}
    assert len(load_config(by_size | {"interaction_feature_size": 3}).interaction_features) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atention_heads": 3}, "unknown key 'atention_heads'.*did you mean 'attention_heads'"),
        ({"attention_heads": 0}, "heads must be at least 1"),
        ({"attention_heads": "three"}, "heads must be an integer, got 'three'"),
        ({"activation_function": "gelu"}, "activation must be one of mish, relu, none"),
        ({"sym_func": "attention"}, "pooling must be one of mean, max"),
        ({"lin_norm": "instance"}, "norm 'instance' is not supported"),
        ({"tdot": True}, "tdot: True is not supported"),
        ({"Learnt_Atomic_Embedding": False}, "Learnt_Atomic_Embedding: False is not supported"),
        ({"interaction_feature_size": 3}, "interaction_feature_size is 3, but"),
        (
            {"Interaction_Features": [{"name": "SOAP"}]},
            "interaction_features: name must be one of.*SOAP",
        ),
        (
            {"Site_Features": [{"name": "agnostic_SOAP_dscribe"}]},
            "site featuriser 'agnostic_SOAP_dscribe' is not supported",
        ),
        ({"Optimizer": {"Name": "LBFGS"}}, "Optimizer Name 'LBFGS' is not supported"),
    ],
)
def test_published_keys_that_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(PUBLISHED | changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": 3}, "unknown key 'head' in config; did you mean 'heads'"),
        ({"hidden": 225}, "hidden must be a list"),
        ({"hidden": [0]}, "hidden must be at least 1"),
        ({"distance_cutoff": -2}, "distance_cutoff must be at least 0, got -2"),
        ({"k_softmax": 0}, "k_softmax must be at least 1"),
        ({"training": {"rate": 1}}, "unknown key 'rate' in config under training"),
        ({"base": "papers"}, "no config named 'papers'"),
        ({"images": "cube"}, "images must be one of supercell, sphere"),
        ({"interaction": "drop"}, "interaction must be one of renew, keep"),
        ({"summary": "first"}, "summary must be one of all, last"),
        ({"residual": 1}, "residual must be true or false, got 1"),
        ({"radius": 0}, "radius must be above 0, got 0"),
        ({"distance_basis": 1}, "distance_basis must be 0 or at least 2"),
        (
            {"distance_basis": 8},
            "distance_basis needs images: sphere or a positive distance_cutoff",
        ),
        ({"envelope": True}, "envelope needs images: sphere or a positive distance_cutoff"),
    ],
)
def test_fields_that_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        load_config(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks": 1_000_000}, "blocks must be at most 1024, got 1000000"),
        ({"hidden": [10**9]}, "hidden must be at most 65536"),
        ({"training": {"members": 10**6}}, "members must be at most 1000"),
        ({"radius": float("nan")}, "radius must be a number, got nan"),
        ({"heads": True}, "heads must be an integer, got True"),
        ({"images": ["sphere"]}, r"images must be one of supercell, sphere, got \['sphere'\]"),
        ({"interaction_features": "distance_matrix"}, "interaction_features must be a list"),
        ({"interaction_features": [{"name": "distance_matrix", "kwargs": 3}]}, "kwargs of an"),
        ({"training": [1]}, "training must hold `key: value` lines"),
        ({"training": {"optimizer": "sgd"}}, "optimizer must be one of adamw, muon, got 'sgd'"),
        ({"training": {"valid": 0.6, "test": 0.5}}, "leave no crystals to train on: 0.6 .* 0.5"),
        ({"base": 3}, "base must be the name or the file of a config, got 3"),
        ({3: 4}, "unknown key 3 in config"),
    ],
)
def test_values_of_the_wrong_type_or_size_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        load_config(values)


def test_numbers_that_yaml_reads_as_text(tmp_path):
    """YAML 1.1 takes 1e-3, which has no point, for a word."""
    path = tmp_path / "config.yaml"
    path.write_text("tolerance: 2e-3\nradius: 6\ntraining: {learning_rate: 1e-4, batch_sites: 1e3}")
    config = load_config(path)
    assert (config.tolerance, config.radius) == (2e-3, 6.0)
    assert (config.training.learning_rate, config.training.batch_sites) == (1e-4, 1000)
    assert isinstance(config.training.batch_sites, int) and isinstance(config.radius, float)


def test_files_that_start_from_each_other(tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"base: {b}")
    b.write_text(f"base: {a}")
    with pytest.raises(
        ValueError, match=r"start from each other in a circle: .*b\.yaml, .*a\.yaml"
    ):
        load_config(a)
    b.write_text("heads: 5")
    assert load_config(a).heads == 5


def test_damaged_files_end_in_one_error_that_names_the_file(tmp_path):
    """Bytes flipped, cut off and doubled at random places: read, or refused with ValueError."""
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.yaml"
    texts = [yaml.safe_dump(load_config(name).to_dict()).encode() for name in ("paper", "sphere")]
    refused = 0
    for k in range(300):
        content = bytearray(texts[k % 2])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        cut = rng.integers(0, len(content)) if k % 3 == 0 else len(content)
        path.write_bytes(bytes(content[:cut]) + bytes(content[:9]) * (k % 5 == 0))
        try:
            load_config(path)
        except ValueError as error:
            refused += 1
            assert "damaged.yaml" in str(error)
    assert 100 < refused < 300


def test_reach_is_the_smaller_of_radius_and_cutoff():
    assert SiteNetConfig().reach is None
    assert SiteNetConfig(distance_cutoff=5.0).reach == 5
    assert SiteNetConfig(images="sphere", radius=6.0).reach == 6
    assert SiteNetConfig(images="sphere", radius=6.0, distance_cutoff=5.0).reach == 5


def test_options_that_no_published_model_has_are_known():
    assert SiteNetConfig(pooling="max", distance_cutoff=5.0).unpublished == []
    config = SiteNetConfig(residual=True, images="sphere")
    assert config.unpublished == ["residual: True", "images: sphere"]


def test_files_that_are_no_config(tmp_path):
    path = tmp_path / "bad.yaml"
    for text in ("[1, 2]", "a: [", "heads: 0"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            load_config(path)
    with pytest.raises(ValueError, match=r"named configs: .*paper"):
        load_config("no-such-config")


def test_replace_reaches_the_training_settings():
    config = SiteNetConfig().replace(heads=4, learning_rate=0.5)
    assert (config.heads, config.training.learning_rate) == (4, 0.5)
    with pytest.raises(ValueError, match="unknown key 'head'"):
        config.replace(head=4)


def test_every_field_has_a_help_text():
    for cls in (SiteNetConfig, type(SiteNetConfig().training)):
        for f in dataclasses.fields(cls):
            assert f.name == "training" or f.metadata["help"]
