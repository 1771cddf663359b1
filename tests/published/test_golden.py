"""The published code's own numbers: every file of the folders named by SITENET_GOLDEN and
SITENET_GOLDEN_E2E (their READMEs describe the format)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden_files import FILES, inputs, pairs_of, read
from rounding import errors, limits

from sitenet import reference
from sitenet.published.checkpoint import published_name

pytestmark = pytest.mark.skipif(not FILES, reason=f"no golden files in {GOLDEN}")


def close(got, want, what, relative=1e-9):
    """Equal to 1e-9 of the largest value, and to the rounding of what is stored in float32."""
    got = got.detach().cpu().double().numpy().reshape(want.shape)
    stored = np.finfo(np.float32).eps * np.abs(want) if want.dtype == np.float32 else 0
    # A gradient that cancels to zero (softmax, norms) leaves rounding noise of either sign.
    limit = relative * np.abs(want).max(initial=1e-4) + stored
    assert (np.abs(got - want) <= limit).all(), f"{what}: {np.abs(got - want).max():.1e}"


def run(z, model, pairs, x, features):
    """Encoding, decoder output and prediction; attention weights and states of each block."""
    seen = SimpleNamespace(weights=[], sites=[], interaction=[])

    def look(block, _, out):
        seen.sites.append(out[0])
        if out[1] is not None:
            seen.interaction.append(block.interaction.affine(out[1]))

    hooks = [block.register_forward_hook(look) for block in model.blocks]
    seen.encoding = model.encode(x, features, pairs, seen.weights)
    for hook in hooks:
        hook.remove()
    seen.logit = model.decoder(seen.encoding)
    seen.prediction = model.decode(seen.encoding)
    return seen


@pytest.fixture(params=["fused", "plain"])
def attention_path(request, monkeypatch):
    """The kernels, and the same in plain torch."""
    if request.param == "plain":
        monkeypatch.setattr("sitenet.model.blocks.attention", reference.attention)
        monkeypatch.setattr("sitenet.model.sitenet.pair_embedding", reference.pair_embedding)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_float64(path, device, attention_path):
    z, model = read(path)
    model.to(device)
    pairs = pairs_of(z, device)
    x, features = inputs(z, model, pairs, torch.float64)
    close(x, z["encoder_input"], "encoder_input")
    features.requires_grad_()
    x.retain_grad()
    out = run(z, model, pairs, x, features)
    for b in range(len(model.blocks)):
        close(out.weights[b], z[f"attention.{b}"], f"attention.{b}")
        close(out.sites[b], z[f"block_sites.{b}"], f"block_sites.{b}")
        if f"block_interaction.{b}" in z and b < len(out.interaction):
            close(out.interaction[b], z[f"block_interaction.{b}"], f"block_interaction.{b}")
    close(out.encoding, z["encoding"], "encoding")
    close(out.logit, z["logit"], "logit")
    close(out.prediction, z["prediction"], "prediction")

    weight = {k: torch.as_tensor(z[k], device=device) for k in ("loss_we", "loss_wp", "target")}
    loss = (weight["loss_we"] * out.encoding).sum()
    loss = loss + (weight["loss_wp"] * out.prediction[:, 0]).sum()
    close(loss, z["loss"], "loss")
    error = (out.prediction[:, 0] - weight["target"]).abs().mean()
    close(error, z["l1_loss"], "l1_loss")
    loss.backward()
    close(x.grad, z["grad_encoder_input"], "grad_encoder_input")
    close(features.grad, z["grad_interaction"], "grad_interaction")
    check_gradients(z, model)


def check_gradients(z, model):
    """Gradients of every parameter; None where the published code has none."""
    without = json.loads(str(z["no_grad_params"]))
    used = torch.as_tensor(z["grad_embedding_rows"])
    for name, parameter in model.named_parameters():
        name, grad = published_name(name), parameter.grad
        if name in without:
            assert grad is None, name
        elif name == "Elemental_Embeddings.weight":
            others = torch.ones(len(grad), dtype=torch.bool)
            others[used] = False
            assert not grad.cpu()[others].any(), name
            close(grad.cpu()[used], z[f"grad/{name}"], name)
        elif grad is None:  # the logits' bias, which cancels in the softmax
            close(torch.zeros_like(parameter), z[f"grad/{name}"], name)
        else:
            close(grad, z[f"grad/{name}"], name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_float32(path, device, monkeypatch):
    """Within what rounding does to the same model in plain torch in float32."""
    z, model = read(path)
    model.float().to(device)
    pairs = pairs_of(z, device)

    def outputs(x, features, states):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), states, strict=True):
                parameter.copy_(value)
            out = run(z, model, pairs, x, features)
        return out.encoding, out.prediction

    states = [p.detach().clone() for p in model.parameters()]
    arguments = *inputs(z, model, pairs, torch.float32), *states
    got = outputs(arguments[0], arguments[1], arguments[2:])
    exact = [
        torch.as_tensor(z[what], dtype=torch.float64, device=device).view_as(x)
        for what, x in zip(("encoding", "prediction"), got, strict=True)
    ]
    monkeypatch.setattr("sitenet.model.blocks.attention", reference.attention)
    monkeypatch.setattr("sitenet.model.sitenet.pair_embedding", reference.pair_embedding)
    allowed = limits(lambda copy: outputs(copy[0], copy[1], copy[2:]), arguments, exact)
    ours = errors(got, exact)
    assert all(x <= y for x, y in zip(ours, allowed, strict=True)), (ours, allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_embedding_after_look_up(path):
    """A training step scales the stored rows as the published look-up does."""
    z, model = read(path)
    model.embedding.scale_rows(torch.as_tensor(z["atomic_id"]))
    rows = model.embedding.weight[torch.as_tensor(z["grad_embedding_rows"])]
    close(rows, z["embedding_after_rows"], "embedding_after_rows")
