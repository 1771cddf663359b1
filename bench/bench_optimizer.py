"""One step of Muon over the hidden matrices of `sphere`: torch's, whose products are in bfloat16
everywhere, and ours, which takes matrices of one shape together, in float32 where the CPU has no
instructions for bfloat16."""

import copy

import pytest
import torch
from cases import measure_in_turn

from sitenet.config import load_config
from sitenet.model.sitenet import SiteNet
from sitenet.training.optimizer import Optimizer


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch >= 2.9 has a Muon")
def test_muon(table):
    config = load_config("sphere")
    torch.manual_seed(0)
    _, ours = Optimizer(SiteNet(config), config.training).parts
    matrices = ours.param_groups[0]["params"]
    for p in matrices:
        p.grad = torch.randn_like(p)
    twins = copy.deepcopy(matrices)
    for p, twin in zip(matrices, twins, strict=True):
        twin.grad = p.grad.clone()
    rate, decay = config.training.learning_rate, config.training.weight_decay
    torch_muon = torch.optim.Muon(
        twins, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    ours.step()
    torch_muon.step()
    for p, twin in zip(matrices, twins, strict=True):
        # A step's root mean square is some 0.2 x rate; torch rounds a tenth of that away.
        assert (p - twin).abs().max() < 0.2 * 0.2 * rate
    times = measure_in_turn({"torch": torch_muon.step, "ours": ours.step}, repeats=10, most=5)
    header = ("way", "matrices", "ms", "+-", "x torch")
    for name, t in times.items():
        ratio = times["torch"].median / t.median
        cells = (f"{t.median * 1e3:.1f}", f"{t.spread * 1e3:.1f}", f"{ratio:.1f}")
        table("step of Muon", header, name, len(matrices), *cells)
