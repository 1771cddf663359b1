"""Weights in and out: published checkpoints, sitenet's files, and what is refused."""

import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from random_pairs import random_pairs
from toy_crystals import toy_crystals

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.model import checkpoint
from sitenet.model.sitenet import SiteNet, Target

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
    with pytest.raises(
        FileNotFoundError, match="'no-such'; weights that ship with sitenet: mp-eform"
    ):
        sitenet.load("no-such")
