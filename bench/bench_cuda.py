"""The GPU's kernels beside the published way on the same GPU, and beside what the GPU can do.

``pytest bench/ -m cuda`` writes ``bench/results/NAME-OF-THE-GPU.md``; see the README there. Copy
bandwidth and matrix rates are measured in the same run, times are medians of CUDA events.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import Time, matbench_crystals, random_cell

from sitenet.config import load_config
from sitenet.data.dataset import Split
from sitenet.model.blocks import Block, Rows
from sitenet.model.layers import Layer
from sitenet.model.sitenet import SiteNet
from sitenet.ops.attention import attention
from sitenet.ops.geometry import minimum_image_distances_batch
from sitenet.pairs.columns import columns_of
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import pair_options
from sitenet.pairs.store import PairStore
from sitenet.published.model import PublishedBlock
from sitenet.system.environment import info
from sitenet.training.data import TrainingData
from sitenet.training.trainer import Trainer

# Other people's compilers warn of themselves and of us: no reason to measure nothing.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]
DEVICE = "cuda"
RESULTS = Path(__file__).parent / "results"
# Per pair of the published block, with its last layer: see csrc/cuda/attention/*.cu.
FLOP_FORWARD, FLOP_BOTH = 29e3, 117e3
EPOCH = 85_000  # crystals of Matbench's band gaps that one fold trains on


def measure_gpu(function, repeats=20):
    """Seconds a call by events on the stream, after three to warm up."""
    for _ in range(3):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    low, median, high = np.quantile([a.elapsed_time(b) / 1e3 for a, b in events], (0.25, 0.5, 0.75))
    return Time(float(median), float(high - low) / 2)


@pytest.fixture(scope="module")
def report():
    """Rows of tables by title; written as Markdown in the end."""
    if not torch.cuda.is_available() or not info()["cuda_kernels"]:
        pytest.skip("needs a CUDA device and a build with CUDA kernels")
    tables = {}
    yield tables
    write_markdown(tables)


def write_markdown(tables):
    facts = info()
    lines = [
        f"# {facts['device']}",
        "",
        f"sitenet {facts['version']}, torch {facts['torch']}, CUDA {facts['cuda_runtime']}. Medians"
        " of 20 runs, +- half the distance of the quartiles.",
    ]
    for title, (header, *rows) in tables.items():
        lines += ["", f"## {title}", ""]
        table = [header, ["---"] * len(header), *rows]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in table]
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", facts["device"] or "none").lower()
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


@pytest.fixture
def row(report, table):
    """Adds a row to the printed table and to the Markdown."""

    def add(title, header, *cells):
        table(title, header, *cells)
        report.setdefault(title, [header]).append(cells)

    return add


@pytest.fixture(scope="module")
def peak(report):
    """Bytes a second of a copy (read and written), operations a second of matrix products."""
    x = torch.randint(0, 100, (1 << 28,), dtype=torch.int32, device=DEVICE)
    rates = {"copy": 2 * x.nbytes / measure_gpu(lambda: x.clone()).median}
    n = 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
        rates[dtype] = 2 * n**3 / measure_gpu(lambda a=a, b=b: a @ b).median
    header = ("copy, GB/s", "bfloat16 product, TFLOP/s", "float32 product, TFLOP/s")
    cells = (f"{rates['copy'] / 1e9:.0f}", *(f"{rates[t] / 1e12:.0f}" for t in list(rates)[1:]))
    report["What the GPU does"] = [header, cells]
    return rates


class Batch:
    """Random input of one block: rows of pairs, crystals of `sites` sites each."""

    def __init__(self, sizes, sites, seed=0):
        rng = np.random.default_rng(seed)
        rows = len(sizes)
        crystal = np.arange(rows) // sites * sites
        row = np.repeat(np.arange(rows), sizes)
        self.sizes, self.num_rows, self.num_pairs = sizes, rows, int(sum(sizes))
        chosen = crystal[row] + rng.integers(0, sites, len(row)) % np.minimum(sites, rows)
        order = np.lexsort((chosen, row))  # as pairs come, site after site
        self.sites = torch.as_tensor(np.minimum(chosen[order], rows - 1), dtype=torch.int32)
        self.offsets = torch.as_tensor(np.concatenate([[0], np.cumsum(sizes)]))
        self.e = torch.as_tensor(rng.normal(size=(len(row), 48)), dtype=torch.float32)
        self.x = torch.as_tensor(rng.normal(size=(rows, 90)), dtype=torch.float32)
        for name in ("sites", "offsets", "e", "x"):
            setattr(self, name, getattr(self, name).to(DEVICE))

    def rows(self):
        return Rows(self.offsets, self.sites, self.e.new_zeros(self.num_pairs))


CASES = {
    "1200 rows of 500": (np.full(1200, 500), 50),
    "4000 rows of 96": (np.full(4000, 96), 8),
}
RAGGED = {
    "merged: 20,000 rows of 5 to 60": (np.random.default_rng(0).integers(5, 61, 20_000), 12),
    "rows of 10 to 10,000": (np.geomspace(10, 10_000, 300).astype(int), 100),
}


def step_of(function, leaves, both):
    def step():
        outputs = [y for y in function() if y is not None]
        if both:
            gradients = [y.detach() for y in outputs]
            torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)

    return step


def published_step(block, batch, both, low, compiled):
    """The published block on padded arrays; without padding here, as rows are of one length."""
    longest = int(batch.sizes[0])
    e = batch.e.view(-1, longest, 48).clone().requires_grad_(both)
    x = batch.x.clone().requires_grad_(both)
    site_j = batch.sites.view(-1, longest).long()
    masked = torch.zeros_like(site_j, dtype=torch.bool)
    run = torch.compile(block) if compiled else block

    def call():
        with torch.autocast("cuda", torch.float16, enabled=low):
            return run(x, e, site_j, masked)[:2]

    return step_of(call, (x, e, *block.parameters()), both), call


def our_step(block, layer, batch, both, low):
    e, x, rows = batch.e.clone().requires_grad_(both), batch.x.clone().requires_grad_(both), None
    rows = batch.rows()
    if low:
        e = e.detach().bfloat16().requires_grad_(both)

    def call():
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            return block(x, e, layer, rows)[:2]

    parameters = [p for p in block.parameters() if p.requires_grad]
    return step_of(call, (x, e, *parameters), both), call


def blocks():
    """The published block and ours, with the same weights."""
    torch.manual_seed(0)
    model = SiteNet.from_config("paper")
    published = PublishedBlock(model.config)
    prefix = "encoder.Attention_Blocks.0."
    state = {k[len(prefix) :]: v for k, v in model.to_published().items() if k.startswith(prefix)}
    published.load_state_dict(state)
    block: Block = model.blocks[0]
    layer = Layer(1, 48, "mish", "layer")  # its norm's affine part is the identity
    return published.to(DEVICE), block.to(DEVICE), layer.to(DEVICE)


HEADER = ("case", "way", "ms", "+-", "G pairs/s", "x published fp16", "share of peak products")


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", CASES)
def test_block(name, both, row, peak, request):
    published, block, layer = blocks()
    batch = Batch(*CASES[name])
    ways = {
        "published fp32": published_step(published, batch, both, False, False),
        "published fp16 autocast": published_step(published, batch, both, True, False),
        "ours fp32": our_step(block, layer, batch, both, False),
        "ours bf16": our_step(block, layer, batch, both, True),
    }
    # torch.compile takes about a minute per case, and needs triton on a GPU.
    if find_spec("triton") and not request.config.getoption("--no-compiled"):
        ways["published fp16, compiled"] = published_step(published, batch, both, True, True)
    with torch.no_grad():
        want = ways["published fp32"][1]()
        for way, limit in (("ours fp32", 1e-4), ("ours bf16", 5e-2)):
            for x, y in zip(ways[way][1](), want, strict=True):
                y = y.reshape(x.shape)
                if way == "ours fp32" or x.dtype != torch.bfloat16:
                    assert (x - y).abs().max() < limit * y.abs().max()
    times = {way: measure_gpu(step) for way, (step, _) in ways.items()}
    baseline = times["published fp16 autocast"].median
    title = f"One block, {'forward and backward' if both else 'forward'}"
    for way, t in times.items():
        rate = batch.num_pairs / t.median
        dtype = torch.float32 if way.endswith("fp32") else torch.bfloat16
        share = rate * (FLOP_BOTH if both else FLOP_FORWARD) / peak[dtype]
        cells = (f"{t.median * 1e3:.3f}", f"{t.spread * 1e3:.3f}", f"{rate / 1e9:.3f}")
        row(title, HEADER, name, way, *cells, f"{baseline / t.median:.1f}", f"{share:.1%}")


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def way(request):
    """What factors the products take."""
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", [*CASES, *RAGGED])
def test_op(name, way, row, peak):
    """The op alone, on even and on ragged rows."""
    batch = Batch(*{**CASES, **RAGGED}[name])
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = ((batch.num_rows, 303), (batch.num_rows, 303), (303, 48), (3, 225))
    inputs = [torch.randn(*s, device=DEVICE, generator=generator) / 7 for s in shapes]
    e = batch.e.bfloat16() if way == "bf16" else batch.e
    leaves = [x.requires_grad_() for x in (*inputs[:2], e.clone(), *inputs[2:])]
    rest = (e.new_zeros(batch.num_pairs, dtype=torch.float32), batch.offsets, batch.sites)

    def call():
        return attention(*leaves, *rest, attention_dim=30)[:2]

    header = (
        "case",
        "products",
        "forward, ms",
        "G pairs/s",
        "both, ms",
        "+-",
        "G pairs/s",
        "GB/s of e",
    )
    with torch.no_grad():
        forward = measure_gpu(call)
    both = measure_gpu(step_of(call, leaves, True))
    rates = [batch.num_pairs / t.median for t in (forward, both)]
    moved = 2 * e.nbytes / forward.median
    row(
        "The attention op",
        header,
        *(name, way),
        *(f"{forward.median * 1e3:.3f}", f"{rates[0] / 1e9:.3f}"),
        *(f"{both.median * 1e3:.3f}", f"{both.spread * 1e3:.3f}", f"{rates[1] / 1e9:.3f}"),
        f"{moved / 1e9:.0f} ({moved / peak['copy']:.0%} of a copy)",
    )


@pytest.mark.parametrize(
    ("sites", "crystals"), [(8, 2_000_000), (100, 2000), (100, 20_000), (500, 100)]
)
def test_distances(sites, crystals, row, peak):
    rng = np.random.default_rng(sites)
    some = np.stack([random_cell(rng) for _ in range(100)])
    cells = torch.as_tensor(some[np.arange(crystals) % 100], dtype=torch.float32, device=DEVICE)
    frac = torch.rand(crystals * sites, 3, device=DEVICE)
    offsets = torch.arange(crystals + 1, device=DEVICE) * sites
    few = torch.as_tensor([0, sites], device="cpu")
    want, _ = minimum_image_distances_batch(
        cells[:1].cpu().double(), *2 * [frac[:sites].cpu().double()], few, few
    )

    def call():
        return minimum_image_distances_batch(cells, frac, frac, offsets, offsets)[0]

    assert (call()[: sites**2].cpu() - want).abs().max() < 1e-4
    t = measure_gpu(call)
    rate = crystals * sites**2 / t.median
    share = 4 * rate / peak["copy"]
    cells = (f"{t.median * 1e3:.3f}", f"{t.spread * 1e3:.3f}", f"{rate / 1e9:.1f}", f"{share:.0%}")
    header = ("case", "ms", "+-", "G pairs/s", "share of a copy's bytes")
    row("Minimum-image distances, float32", header, f"{crystals} x {sites} sites", *cells)


def captures(run):
    """Number of batch sizes seen, and of those that are captured."""
    return len(run.captured.sizes), run.captured.captured


@pytest.mark.parametrize("capture", [False, True], ids=["kernels", "graphs"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["paper", "sphere", "density"])
def test_epoch(name, precision, capture, row, full):
    """Training as ``sitenet train`` does, on Matbench crystals that stay on the GPU."""
    config = load_config(name).replace(precision=precision, capture=capture)
    crystals = matbench_crystals(4000 if full else 1000)
    pairs = [find_pairs(c, **pair_options(config)) for c in crystals]
    store = PairStore.of([columns_of(p) for p in pairs])
    targets = np.random.default_rng(0).uniform(0, 4, (len(pairs), 1))
    model = SiteNet(config).to(DEVICE)
    everything, none = np.arange(len(pairs)), np.empty(0, int)
    data = TrainingData(store.to(DEVICE), targets, Split(everything, none, none))
    run = Trainer(model, data)
    while run.captured:  # what captures is not measured
        before = captures(run)
        run.train_epoch()
        if captures(run) == before:
            break
    t = measure_gpu(run.train_epoch, repeats=10)
    rate = len(pairs) / t.median
    steps = run.steps_per_epoch
    header = ("config", "precision", "host starts", "crystals/s", "ms a step")
    header += ("s for an epoch of 85,000", "host")
    cells = (name, precision, "graphs" if capture else "kernels", f"{rate:.0f}")
    cells += (f"{t.median / steps * 1e3:.2f}", f"{EPOCH / rate:.2f}", f"{os.cpu_count()} cores")
    row("Training", header, *cells)
