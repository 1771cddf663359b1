"""One attention block of the paper's size: published way, plain factorised torch, and ours.

Every way is a whole block: the products with the states of sites and the last layer, too. FLOP are
those of the products with e_ij alone (48 x 303 multiplications a pair, once forward; backward once
more to recompute and twice for the gradients); the peak is a large product of the same dtype in
torch, in the same rounds, of float32 for bfloat16 too where the CPU has no instructions for it.
"""

import contextlib
from unittest.mock import patch

import pytest
import torch
from cases import large_product, matbench_pairs, measure_in_turn

from sitenet import reference
from sitenet.config import SiteNetConfig
from sitenet.model.blocks import Rows
from sitenet.model.sitenet import SiteNet
from sitenet.published.checkpoint import to_published
from sitenet.published.model import PaddedBatch, PublishedSiteNet
from sitenet.system.devices import multiplies_bfloat16

HEADER = ("case", "pairs", "way", "ms", "+-", "x published", "M pairs/s", "GFLOP/s", "of peak")
BF16 = "ours, bf16 products"
CONFIG = SiteNetConfig()
SITES = CONFIG.heads * CONFIG.site_dim
WIDTH = CONFIG.heads * CONFIG.interaction_dim
FLOP = 2 * WIDTH * (CONFIG.hidden[0] + CONFIG.site_dim + WIDTH)


def synthetic_rows(num_pairs, length):
    """Rows of this length, each of a crystal that has as many sites: offsets and sites."""
    num_rows = num_pairs // length
    generator = torch.Generator().manual_seed(0)
    sites = torch.randint(num_rows, (num_rows * length,), generator=generator)
    return torch.arange(num_rows + 1) * length, sites.int()


def matbench_rows(num_pairs, length):
    pairs = matbench_pairs(num_pairs * 5 // (length * 4), length, merge=False)
    return pairs.offsets, pairs.sites


class Case:
    """A block in the published way and in ours, with the same weights and inputs."""

    def __init__(self, offsets, sites):
        torch.manual_seed(0)
        model = SiteNet(CONFIG)
        published = PublishedSiteNet(CONFIG)
        published.load_state_dict(to_published(model))
        self.published = published.encoder.Attention_Blocks[0]
        self.block, self.e_layer = model.blocks[0], model.pair_layer
        self.rows = Rows(offsets, sites, torch.zeros(len(sites)))
        num_rows = len(offsets) - 1
        self.x = torch.randn(num_rows, SITES, requires_grad=True)
        self.e = torch.randn(len(sites), WIDTH, requires_grad=True)
        self.grad_y, self.grad_e = torch.randn(num_rows, SITES), torch.randn(len(sites), WIDTH)
        self.padded = self.pad(self.e.detach()).requires_grad_()
        self.padded_grad_e = self.pad(self.grad_e)
        self.rounded = self.e.detach().bfloat16().requires_grad_()

    def pad(self, e):
        """(pairs, E) -> (rows, longest, E)."""
        offsets, sites = self.rows.offsets, self.rows.sites
        crystals, unused = offsets[[0, -1]], torch.zeros(len(offsets) - 1)
        self.batch = PaddedBatch.from_rows(e, offsets, sites, crystals, unused, unused)
        return self.batch.features

    def run_published(self):
        y, e, _ = self.published(self.x, self.padded, self.batch.site_j, self.batch.padding)
        return y, e

    def run_ours(self):
        return self.block(self.x, self.e, self.e_layer, self.rows)[:2]

    def run_bf16(self):
        with torch.autocast("cpu", torch.bfloat16):
            return self.block(self.x, self.rounded, self.e_layer, self.rows)[:2]

    def run_plain(self):
        with patch("sitenet.model.blocks.attention", reference.attention):
            return self.run_ours()

    def ways(self, compiled):
        """Name -> the function, its e, and its parameters."""
        ours, published = (
            [p for p in m.parameters() if p.requires_grad]
            for m in (torch.nn.ModuleList([self.block, self.e_layer.norm]), self.published)
        )
        ways = {
            "published": (self.run_published, self.padded, published),
            "plain factorised": (self.run_plain, self.e, ours),
            "ours": (self.run_ours, self.e, ours),
            BF16: (self.run_bf16, self.rounded, ours),
        }
        if compiled:
            torch._dynamo.reset()
            ways["plain compiled"] = (torch.compile(self.run_plain), self.e, ours)
        return ways

    def both(self, run, e, parameters):
        """Forward and backward: outputs, and gradients of x, of e and of the parameters."""
        outputs = run()
        grad_e = self.padded_grad_e if e is self.padded else self.grad_e.to(outputs[1].dtype)
        grads = self.grad_y.to(outputs[0].dtype), grad_e
        inputs = self.x, e, *parameters
        return outputs, torch.autograd.grad(outputs, inputs, grads, allow_unused=True)

    def results(self, way):
        """Outputs and gradients by x and e, pairs as in CSR rows."""
        (y, e_out), (grad_x, grad_e, *_) = self.both(*way)
        if e_out.dim() == 3:
            e_out, grad_e = (x[~self.batch.padding] for x in (e_out, grad_e))
        return y, e_out, grad_x, grad_e


def check(case, ways):
    want = case.results(ways["published"])
    for name, way in ways.items():
        tolerance = 0.05 if name == BF16 else 1e-4
        for got, x in zip(case.results(way), want, strict=True):
            assert (got - x).abs().max() <= tolerance * x.abs().max(), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own parts
@pytest.mark.parametrize("kind", ["Matbench", "synthetic"])
@pytest.mark.parametrize("length", [50, 100, 500])
def test_block(kind, length, table, full):
    if not full and (kind, length) not in {("Matbench", 100), ("synthetic", 500)}:
        pytest.skip("with --full only")
    rows = matbench_rows if kind == "Matbench" else synthetic_rows
    offsets, sites = rows(100_000 if full else 20_000, length)
    case = Case(offsets, sites)
    ways = case.ways(compiled=full)
    check(case, ways)
    low = torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32
    products = {d: large_product(d) for d in {torch.float32, low}}
    for title, times_flop in (("forward", 1), ("forward + backward", 4)):
        backward = times_flop > 1
        functions = {
            name: (lambda w=way: case.both(*w)) if backward else way[0]
            for name, way in ways.items()
        }
        functions |= {dtype: product for dtype, (product, _) in products.items()}
        with contextlib.nullcontext() if backward else torch.no_grad():
            times = measure_in_turn(functions, most=60 if full else 2.5)
        for name in ways:
            dtype = low if name == BF16 else torch.float32
            peak = products[dtype][1] / times[dtype].median
            seconds, spread = times[name].median, times[name].spread
            rate = len(sites) / seconds
            flop = rate * FLOP * times_flop / 1e9
            ratio = times["published"].median / seconds
            cells = (f"{seconds * 1e3:.1f}", f"{spread * 1e3:.1f}", f"{ratio:.1f}")
            cells = (*cells, f"{rate / 1e6:.3f}", f"{flop:.0f}", f"{flop / peak:.0%}")
            table(f"attention block, {title}", HEADER, f"{kind} {length}", len(sites), name, *cells)
