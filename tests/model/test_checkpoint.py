"""Weights in and out: published checkpoints, sitenet's files, and what is refused."""

import json
import os
import pickle
import sys
import time
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from random_pairs import random_pairs
from toy_crystals import toy_crystals, toy_model

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.model import checkpoint
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.files import load_tensors, save_tensors

SMALL = SiteNetConfig(
    embedding=6, heads=2, site_dim=3, interaction_dim=2, hidden=(7,), pre_pool=(5,), post_pool=(4,)
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SiteNet(SMALL, [Target("gap", "eV", 1.0, 2.0)])


def test_paper_has_the_published_keys_and_sizes():
    state = SiteNet.from_config("paper").to_published()
    assert len(state) == 63
    assert sum(v.numel() for v in state.values()) == 304_085
    assert state["encoder.Attention_Blocks.1.ije_to_multihead.linear_layers.0.weight"].shape == (
        225,
        228,
    )
    assert state["encoder.site_featurization.weight"].shape == (90, 101)
    assert state["encoder.post_pool_layers_norm.2.bias"].shape == (200,)
    assert state["Elemental_Embeddings.weight"].shape == (200, 92)


def test_published_and_back(model):
    model.targets = [Target()]
    state = model.to_published()
    again = SiteNet.from_published(SMALL, state)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )
    assert list(again.to_published()) == list(state)


@pytest.mark.parametrize(
    "changes", [{}, {"scale_site_features": True}, {"max_norm": False}, {"missing": "mean"}]
)
@pytest.mark.parametrize("last", ["trelu", "identity"])
def test_what_the_published_code_lacks_goes_into_the_weights(changes, last):
    """Scaled targets and features and long rows of the embedding: the same predictions without."""
    config = SMALL.replace(last_activation=last)
    torch.manual_seed(1)
    model = SiteNet(config.replace(**changes), [Target("gap", "eV", 1.5, 2.5)]).double().eval()
    model.embedding.weight.data *= 3
    model.decoder.bias.data.fill_(1)  # above 0, so that trelu hides nothing
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    crystals = toy_crystals(6)
    want = model.predict(crystals)
    again = SiteNet.from_published(config, model.to_published()).double()
    again.load_state_dict({k: v.double() for k, v in again.state_dict().items()})
    np.testing.assert_allclose(again.predict(crystals), want, rtol=1e-4, atol=1e-4)
    assert want.std() > 1e-3
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_no_norm_has_no_norm_keys():
    state = SiteNet(SMALL.replace(norm="none", post_pool_norm="none")).to_published()
    assert not any("norm" in k for k in state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_lightning_checkpoint_file(model, tmp_path, wrap):
    model.targets = [Target()]
    torch.save(wrap(model.to_published()), tmp_path / "published.ckpt")
    again = SiteNet.from_published(SMALL, tmp_path / "published.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_lightning_classes_beside_the_weights_do_no_harm(model, tmp_path, monkeypatch):
    """Hyperparameters and callbacks, of a Lightning that is not installed when loading."""
    model.targets = [Target()]
    content = {"state_dict": model.to_published()}
    with monkeypatch.context() as patch:
        lightning = types.ModuleType("pytorch_lightning.callbacks")
        for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
            made = type(name, (base,), {"__module__": lightning.__name__})
            setattr(lightning, name, made)
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, lightning.__name__, lightning)
        callback = lightning.ModelCheckpoint()
        callback.best = 0.25
        content["callbacks"] = {lightning.ModelCheckpoint: {"best": callback}}
        content["hyper_parameters"] = lightning.AttributeDict(config={"heads": 2}, seed=1)
        torch.save(content, tmp_path / "published.ckpt")
    again = SiteNet.from_published(SMALL, tmp_path / "published.ckpt")
    assert torch.equal(again.decoder.weight, model.decoder.weight)


def test_all_wrong_keys_are_listed(model):
    state = model.to_published()
    del state["decoder.bias"], state["encoder.site_featurization.bias"]
    state["encoder.tdot"] = torch.zeros(1)
    state["decoder.weight"] = torch.zeros(1, 5)
    with pytest.raises(ValueError) as caught:
        SiteNet.from_published(SMALL, state)
    message = str(caught.value)
    assert "missing: " in message and "decoder.bias" in message
    assert "encoder.site_featurization.bias" in message
    assert "extra: encoder.tdot" in message
    assert "decoder.weight has shape (1, 5), not (1, 4)" in message


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_malicious_checkpoint_is_refused_and_does_not_run(model, tmp_path):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save({"state_dict": model.to_published(), "callbacks": Malicious(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt is refused: .*run code.* posix\.system"):
        SiteNet.from_published(SMALL, path)
    with open(path, "wb") as file:
        pickle.dump(Malicious(trace), file)
    with pytest.raises(ValueError, match=r"evil\.ckpt is refused"):
        SiteNet.from_published(SMALL, path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.ckpt"):
        SiteNet.from_published(SMALL, path)
    with pytest.raises(FileNotFoundError):
        SiteNet.from_published(SMALL, tmp_path / "absent.ckpt")


def test_save_and_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path, {"epoch": 7})
    again = sitenet.load(path)
    assert again.config == model.config
    assert again.targets == model.targets
    assert not again.training
    pairs = random_pairs()
    for each in (model, again):
        each.element_table.fill_(1.0)
    assert torch.equal(again(pairs), model.eval()(pairs))
    header = checkpoint.read_metadata(path)
    assert header["metadata"] == {"epoch": 7}
    assert header["sitenet"] == sitenet.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_failed_save_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        model.save(path, {"epoch": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_damaged_file_is_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    content = path.read_bytes()
    for cut in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            sitenet.load(path)


def test_flipped_bytes_are_never_used(model, tmp_path):
    """Of a model's file and of a published checkpoint: refused by name, or the same weights (a flip
    in a time stamp or in padding)."""
    model.targets = [Target()]
    ours, published = tmp_path / "model.safetensors", tmp_path / "published.ckpt"
    model.save(ours)
    torch.save({"state_dict": model.to_published()}, published)
    rng = np.random.default_rng(0)
    for path, read, share in (
        (ours, sitenet.load, 0.95),
        (published, lambda p: SiteNet.from_published(SMALL, p), 0.3),
    ):
        content = path.read_bytes()
        refused = 0
        for place in rng.choice(len(content), 150, replace=False):
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            try:
                again = read(path)
            except ValueError as error:
                assert path.name in str(error)
                refused += 1
                continue
            assert all(
                torch.equal(a, b)
                for a, b in zip(again.parameters(), model.parameters(), strict=True)
            )
            assert again.config == model.config and again.targets == model.targets
        assert refused > share * 150


def header_of(path, **changes):
    """Rewrite a model's file, without a checksum, with other metadata; None removes a key."""
    tensors, metadata = load_tensors(path)
    header = json.loads(metadata["sitenet"])
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = header
        for name in outer:
            place = place[int(name) if isinstance(place, list) else name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    safetensors.torch.save_file(tensors, path, {"sitenet": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "config must be of type dict, got nothing"),
        ({"config": [1]}, r"config must be of type dict, got list \[1\]"),
        ({"format": "1"}, "format must be of type int, got str '1'"),
        ({"format": True}, "format must be of type int, got bool True"),
        ({"targets": {}}, "targets must be of type list"),
        ({"targets": []}, "targets: 0 cannot be"),
        ({"targets": [{"name": 5}]}, "target 1: name must be of type str"),
        ({"targets": [5]}, "target 1: "),
        ({"targets": [{"nam": "a"}]}, "target 1: .*nam"),
        ({"targets__0__std": 0.0}, "target 1: .*std positive"),
        ({"targets__0__kind": "label"}, "target 1: kind must be one of value, class"),
        ({"members": 1_000_000}, "members: 1000000 cannot be, as the file holds"),
        ({"members": 2}, "does not fit the config; missing: members.0.embedding.weight"),
        ({"members": 0}, "members: 0 cannot be"),
        ({"members": -3}, "members: -3 cannot be"),
        ({"members": 1.5}, "members must be of type int"),
        ({"config__blocks": 1_000_000}, "config: blocks"),
        ({"config__blocks": 60}, "config: blocks: 60 cannot be"),
        ({"config__blocks": "two"}, "config: blocks must be"),
        ({"config__blocks": 10**30}, "config: blocks"),
        ({"config__embedding": 900}, "does not fit the config; wrong: embedding.weight has"),
        ({"config__embedding": 10**18}, "config: "),
        ({"config__heads": 50}, "does not fit the config; wrong: "),
        ({"config__heads": 10**7}, "config: heads|does not fit"),
        ({"config__hidden": [7] * 1000}, "config: .*hidden"),
        ({"config__hidden": 7}, "config: hidden must be"),
        ({"config__distance_basis": 10**12, "config__distance_cutoff": 5.0}, "does not fit|basis"),
        ({"config__training": 5}, "config: "),
        ({"config__radius": "far"}, "config: "),
        ({"config__no_such": 5}, "config: unknown key 'no_such'"),
        ({"config__base": "paper"}, "config: base"),
        ({"metadata": 3}, "metadata must be of type dict"),
        ({"uses_oxidation": "no"}, "uses_oxidation must be of type bool"),
    ],
)
def test_metadata_that_is_none_is_refused_at_once(model, tmp_path, changes, message):
    path = tmp_path / "model.safetensors"
    model.save(path)
    header_of(path, **changes)
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"model\.safetensors.*(" + message + ")"):
        sitenet.load(path)
    assert time.process_time() - begin < 5  # a million blocks take minutes


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", "[" * 100_000])
def test_metadata_that_is_no_object_is_refused(model, tmp_path, text):
    path = tmp_path / "model.safetensors"
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, {"sitenet": text})
    with pytest.raises(ValueError, match=r"model\.safetensors: the metadata"):
        sitenet.load(path)


def test_a_wrong_calibration_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    for name, value, message in (
        ("calibration.axes", torch.zeros(3, 2), r"axes must have shape \(6, None\), got \(3, 2\)"),
        ("calibration.points", None, "points is missing"),
        ("calibration.other", torch.zeros(1), "unknown other"),
        ("calibration.familiarity.radii", torch.zeros(5), "radii must have shape"),
        ("calibration.familiarity.bonds", torch.full((1, 5), 500.0), "bonds must be between"),
    ):
        toy_model().save(path)
        tensors, metadata = load_tensors(path)
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match="safetensors: calibration: " + message):
            sitenet.load(path)


def test_older_files_without_checksum_or_new_keys_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    header_of(path, members=None, uses_oxidation=None, config__primitive=None)
    again = sitenet.load(path)
    assert again.uses_oxidation and again.config == model.config


def test_a_run_folder_stands_for_its_model(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        sitenet.load(tmp_path)
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(sitenet.load(tmp_path).decoder.weight, model.decoder.weight)
    save_tensors(tmp_path / "state.safetensors", {"a": torch.ones(1)}, {"sitenet": "{}"})
    with pytest.raises(ValueError, match=r"state of a training run.*model\.safetensors instead"):
        sitenet.load(tmp_path / "state.safetensors")


def test_other_safetensors_and_later_formats_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a sitenet model"):
        sitenet.load(path)
    header = {"format": checkpoint.FORMAT + 1, "sitenet": "99.0"}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"sitenet": json.dumps(header)})
    with pytest.raises(ValueError, match=r"written by sitenet 99\.0.*upgrade"):
        sitenet.load(path)


def test_weights_that_do_not_fit_are_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    tensors, header = safetensors.torch.load_file(path), checkpoint.read_metadata(path)
    tensors["extra"] = tensors.pop("decoder.bias")
    safetensors.torch.save_file(tensors, path, {"sitenet": json.dumps(header)})
    with pytest.raises(ValueError, match=r"missing: decoder\.bias; extra: extra"):
        sitenet.load(path)


def test_unknown_name_lists_what_ships():
    listed = ", ".join(sorted(checkpoint.shipped_weights()))
    assert "mp-eform" in listed
    with pytest.raises(
        FileNotFoundError, match=f"'no-such'; weights that ship with sitenet: {listed}$"
    ):
        sitenet.load("no-such")
