"""Products over sites against sitenet.reference, as a CPU and as a GPU forms them."""

from types import SimpleNamespace

import pytest
import torch
from step_checks import check_site_terms, check_site_terms_in_bfloat16

from sitenet.ops import site_terms as ops


@pytest.fixture(params=["CPU", "CUDA"])
def implementation(request, monkeypatch):
    """Both are plain torch, which any device runs."""
    functions = getattr(ops, f"{request.param}_IMPLEMENTATIONS")
    monkeypatch.setattr(ops, "fuses", lambda x: True)
    monkeypatch.setattr(ops, "_ops", SimpleNamespace(**functions))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("sites", "rows"), [(0, 0), (1, 1), (70, 70), (70, 33), (3, 0)])
def test_site_terms(implementation, sites, rows, dtype):
    check_site_terms(sites, rows, dtype)


@pytest.mark.parametrize(("sites", "rows"), [(0, 0), (70, 70), (70, 33)])
def test_plain_torch(sites, rows):
    check_site_terms(sites, rows, torch.float64)


def test_bfloat16(implementation):
    check_site_terms_in_bfloat16()


def test_gradcheck(implementation):
    leaves = [torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (2, 4, 3), (4,))]
    for rows in (5, 2):
        assert torch.autograd.gradcheck(
            lambda *x, rows=rows: ops.site_terms(*x, first=1 if rows == 2 else 0, rows=rows),
            [x.requires_grad_() for x in leaves],
        )


def test_opcheck():
    x, weight, bias = torch.randn(6, 5), torch.randn(2, 3, 5), torch.randn(3)
    forward = torch.ops.sitenet.site_terms_forward.default
    backward = torch.ops.sitenet.site_terms_backward.default
    for low in (torch.float32, torch.bfloat16):
        factors = x.to(low), weight.to(low)
        torch.library.opcheck(forward, (*factors, bias, 2, 3))
        torch.library.opcheck(backward, (*factors, 2, 3, *forward(*factors, bias, 2, 3)))
