"""Correctness of every CUDA op, before anything else is believed.

Each case compares with ``sitenet.reference`` in float64 and runs in a process of its own, so that a
fault in one case leaves the others a working context. Prints one line per case.

    python3 probe.py [cuda|cpu]          all cases
    python3 probe.py cuda CASE           one case
"""

import os
import subprocess
import sys
import time

DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"
# hidden, attention, interaction, width of e, heads
DIMS = {
    "tiny": (7, 3, 5, 5, 1),
    "paper": (225, 30, 48, 48, 3),
    "last": (225, 30, 0, 48, 3),
    "sphere": (64, 32, 0, 32, 4),
    "heads8": (33, 17, 1, 9, 8),
    "wide": (70, 40, 64, 80, 5),
}
ROWS = {
    "edges": (100, 3, 0, 31, 32, 33, 47, 48, 49, 1, 200, 0),
    "slabs": (250,) * 280 + (9,) * 1200,
}
# channels, radial functions, degrees, mixed channels of a power spectrum
SPECTRA = {"density": (16, 8, 5, 48), "tiny": (1, 2, 1, 1), "wide": (33, 5, 2, 65)}
CASES = [
    *(f"attention {d} {t} edges" for d in DIMS for t in ("f32", "bf16", "tf32", "f64")),
    *(f"attention {d} {t} slabs" for d in ("paper", "sphere") for t in ("f32", "bf16", "tf32")),
    *(f"embedding {f} {w} {t}" for f, w in ((2, 48), (18, 32)) for t in ("f32", "bf16", "f64")),
    *(f"spectrum {s} {t} edges" for s in SPECTRA for t in ("f32", "f64")),
    "spectrum density f32 slabs",
    *("distances f32", "distances f64", "stream", "graph attention", "graph spectrum"),
    *("train sphere", "train density"),
]
# Largest error allowed, relative to the largest entry: rounding of each format, summed over a row.
LIMIT = {"f64": 1e-11, "f32": 2e-5, "tf32": 1e-2, "bf16": 4e-2}
SECONDS = 120  # per case


def gap(got, want):
    """Largest difference relative to the largest entry; nan where something is not finite."""
    if not want.numel():
        return 0.0
    got, want = got.double(), want.double()
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-3)).item()


def attention_case(dims, kind, rows):
    import torch

    from sitenet import reference
    from sitenet.ops import attention as ops

    hidden, a_dim, interaction, width, heads = DIMS[dims]
    sizes = ROWS[rows]
    columns, pairs, sites = hidden + a_dim + interaction, sum(sizes), len(sizes) + 2
    generator = torch.Generator().manual_seed(os.getpid())

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [
        random(len(sizes), columns),
        random(sites, columns),
        random(pairs, width),
        random(columns, width) / width**0.5,
        3 * random(heads, hidden) / hidden**0.5,
    ]
    log_multiplicity = torch.randint(1, 9, (pairs,), generator=generator).double().log()
    log_multiplicity[::7] = -torch.inf
    offsets = torch.tensor((0, *sizes)).cumsum(0).to(DEVICE)
    index = torch.randint(0, sites, (pairs,), generator=generator, dtype=torch.int32).to(DEVICE)
    grads = []

    def run(function, dtype, e_dtype):
        leaves = [
            x.to(DEVICE, e_dtype if i == 2 else dtype).requires_grad_()
            for i, x in enumerate(inputs)
        ]
        rest = log_multiplicity.to(DEVICE, dtype), offsets, index
        outputs = [y for y in function(*leaves, *rest, attention_dim=a_dim)[:2] if y is not None]
        if not grads:
            grads.extend(random(*y.shape).to(DEVICE) for y in outputs)
        given = [g.to(y.dtype) for g, y in zip(grads, outputs, strict=True)]
        return [*outputs, *torch.autograd.grad(outputs, leaves, given)]

    want = run(reference.attention, torch.float64, torch.float64)
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    dtype = torch.float64 if kind == "f64" else torch.float32
    e_dtype = torch.bfloat16 if kind == "bf16" else dtype
    got, again = (run(ops.attention, dtype, e_dtype) for _ in range(2))
    same = all(torch.equal(p, q) for p, q in zip(got, again, strict=True))
    names = [*["y", "e_out"][: len(got) - 5], "d_i", "d_j", "d_e", "d_W", "d_logit"]
    errors = {name: gap(p, q) for name, p, q in zip(names, got, want, strict=True)}
    return errors, LIMIT[kind], same


def embedding_case(features, width, kind):
    import torch

    from sitenet import reference
    from sitenet.ops import attention as ops

    generator = torch.Generator().manual_seed(os.getpid())
    shapes = (5001, features), (width, features), (width,)
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    grad = torch.randn(5001, width, generator=generator, dtype=torch.float64).to(DEVICE)

    def run(function, dtype, low=False):
        leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
        with torch.autocast(DEVICE, torch.bfloat16, enabled=low):
            y = function(*leaves)
        return [y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    want = run(reference.pair_embedding, torch.float64)
    dtype = torch.float64 if kind == "f64" else torch.float32
    got = run(ops.pair_embedding, dtype, kind == "bf16")
    errors = dict(zip(("e", "d_f", "d_W", "d_b"), map(gap, got, want), strict=True))
    return errors, LIMIT[kind], True


def spectrum_inputs(sizes, rows, seed):
    """Values, mix, radial functions and vectors in float64, offsets and sites, on the device."""
    import torch

    channels, radial, degrees, mixed = sizes
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)

    offsets = torch.tensor((0, *rows)).cumsum(0)
    images, sites, products = int(offsets[-1]), len(rows) + 2, channels * radial
    vectors = 3 * random(images, 3)
    vectors[::7] = 0  # images at the site itself, which have no direction
    index = torch.randint(0, sites, (images,), generator=generator, dtype=torch.int32)
    mix = random(degrees, products, mixed) / products**0.5
    inputs = [random(sites, channels), mix, random(images, radial), vectors]
    return inputs, (offsets.to(DEVICE), index.to(DEVICE)), random(len(rows), degrees, mixed)


def spectrum_case(sizes, kind, rows):
    import torch

    from sitenet import reference
    from sitenet.ops.power_spectrum import power_spectrum

    inputs, rest, grad = spectrum_inputs(SPECTRA[sizes], ROWS[rows], os.getpid())

    def run(function, dtype):
        values, mix, radial, vectors = (x.to(dtype) for x in inputs)
        leaves = values.requires_grad_(), mix.requires_grad_()
        y = function(*leaves, radial, vectors, *rest)
        return [y, *torch.autograd.grad(y, leaves, grad.to(dtype))]

    want = run(reference.power_spectrum, torch.float64)
    dtype = torch.float64 if kind == "f64" else torch.float32
    got, again = (run(power_spectrum, dtype) for _ in range(2))
    same = all(torch.equal(p, q) for p, q in zip(got, again, strict=True))
    errors = dict(zip(("y", "d_values", "d_mix"), map(gap, got, want), strict=True))
    return errors, LIMIT[kind], same


def distances_case(kind):
    import numpy as np
    import torch

    from sitenet.ops.geometry import minimum_image_distances_batch

    rng = np.random.default_rng(os.getpid())
    cells = np.eye(3) * 5 + rng.normal(size=(3000, 3, 3)) * 2
    cells = cells[np.abs(np.linalg.det(cells)) > 5]
    sizes = rng.integers(0, 40, len(cells))
    frac = rng.uniform(-2, 2, (sizes.sum(), 3))
    offsets = torch.as_tensor(np.concatenate([[0], sizes.cumsum()]))

    def run(device, dtype):
        arrays = cells, frac, frac[::-1].copy()
        cell, i, j = (torch.as_tensor(x).to(device, dtype).requires_grad_() for x in arrays)
        ranges = offsets.to(device), offsets.to(device)
        y = minimum_image_distances_batch(cell, i, j, *ranges)[0]
        return [y, *torch.autograd.grad(y.sum(), (cell, i, j))]

    want = run("cpu", torch.float64)
    got = run(DEVICE, torch.float64 if kind == "f64" else torch.float32)
    # By norms, as gradients jump where two images are equally near.
    gaps = [
        ((p.cpu().double() - q).norm() / q.norm()).item() for p, q in zip(got, want, strict=True)
    ]
    errors = dict(zip(("d", "d_cell", "d_i", "d_j"), gaps, strict=True))
    return errors, 1e-10 if kind == "f64" else 1e-2, True


def stream_case():
    """The kernels run on the current stream: they wait for what was queued there before."""
    import torch

    from sitenet.ops.attention import attention

    torch.manual_seed(0)
    shapes = (90, 303), (90, 303), (9000, 48), (303, 48), (3, 225)
    inputs = [torch.randn(*s, device=DEVICE) / 7 for s in shapes]
    rest = (
        torch.zeros(9000, device=DEVICE),
        torch.arange(91, device=DEVICE) * 100,
        torch.randint(0, 90, (9000,), dtype=torch.int32, device=DEVICE),
    )
    want = attention(*inputs, *rest, attention_dim=30)[0]
    late, stream = [torch.zeros_like(x) for x in inputs], torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for x, y in zip(late, inputs, strict=True):
            x.copy_(y)
        got = attention(*late, *rest, attention_dim=30)[0]
    stream.synchronize()
    return {"other stream": gap(got, want)}, 0.0, True


def attention_step():
    """Both passes of the attention ops under autocast, and the tensor that changes their result."""
    import torch

    from sitenet.ops.attention import attention, pair_embedding

    features = torch.randn(40000, 18, device=DEVICE)
    shapes = (800, 96), (800, 96), (96, 32), (4, 64), (32, 18), (32,)
    inputs = [torch.randn(*s, device=DEVICE) / 6 for s in shapes]
    rest = (
        torch.zeros(40000, device=DEVICE),
        torch.arange(801, device=DEVICE) * 50,
        torch.randint(0, 800, (40000,), dtype=torch.int32, device=DEVICE),
    )

    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        site_i, site_j, weight, logit_weight, a, b = leaves
        with torch.autocast("cuda", torch.bfloat16):
            e = pair_embedding(features, a, b)
            y = attention(site_i, site_j, e, weight, logit_weight, *rest, attention_dim=32)[0]
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    return step, features


def spectrum_step():
    """Both passes of the power spectrum, and the tensor that changes their result."""
    import torch

    from sitenet.ops.power_spectrum import power_spectrum

    inputs, rest, _ = spectrum_inputs(SPECTRA["density"], (40,) * 800, 0)
    values, mix, radial, vectors = (x.float() for x in inputs)

    def step():
        leaves = [x.detach().requires_grad_() for x in (values, mix)]
        y = power_spectrum(*leaves, radial, vectors, *rest, check_indices=False)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    return step, radial


def graph_case(op):
    """A captured step replayed on changed inputs equals the same step run eagerly."""
    import torch

    torch.manual_seed(0)
    step, changing = globals()[f"{op}_step"]()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        got = step()
    changing.mul_(-0.7)
    graph.replay()
    pairs = zip(got, step(), strict=True)
    return {str(k): gap(p, q) for k, (p, q) in enumerate(pairs)}, 0.0, True


def train_case(name):
    """Losses of four epochs of a config: on the CPU, eagerly on the GPU, and from CUDA graphs."""
    import warnings

    import numpy as np
    import torch

    from sitenet.config import load_config
    from sitenet.crystal import Crystal
    from sitenet.data import Split
    from sitenet.model import SiteNet
    from sitenet.pairs import find_pairs
    from sitenet.pairs.columns import columns_of
    from sitenet.pairs.maker import pair_options
    from sitenet.pairs.store import PairStore
    from sitenet.training.data import TrainingData
    from sitenet.training.trainer import Trainer

    warnings.filterwarnings("error", "capturing a training step")
    rng, crystals = np.random.default_rng(0), []
    for _ in range(96):
        n = int(rng.integers(2, 9))
        cell = np.eye(3) * (2.2 * n ** (1 / 3) + 1) + rng.normal(size=(3, 3)) * 0.2
        crystals.append(Crystal(cell, rng.random((n, 3)), rng.integers(3, 40, n)))
    targets = np.arange(96.0)[:, None] % 4
    parts = Split(np.arange(96), np.empty(0, int), np.empty(0, int))
    losses = {}
    for way, device in (("cpu", "cpu"), ("eager", DEVICE), ("graphs", DEVICE)):
        config = load_config(name).replace(
            capture=way == "graphs" and DEVICE == "cuda", precision="float32", batch_crystals=24
        )
        pairs = [find_pairs(c, **pair_options(config)) for c in crystals]
        store = PairStore.of([columns_of(p) for p in pairs])
        torch.manual_seed(0)
        data = TrainingData(store.to(device), targets, parts)
        trainer = Trainer(SiteNet(config).to(device), data)
        losses[way] = [trainer.train_epoch() for _ in range(4)]
    want = np.array(losses["cpu"])
    return {k: float(np.abs(np.array(v) / want - 1).max()) for k, v in losses.items()}, 0.05, True


def run_one(case):
    begin, (kind, *words) = time.time(), case.split()
    arguments = [int(x) if x.isdigit() else x for x in words]
    errors, limit, same = globals()[f"{kind}_case"](*arguments)
    bad = [k for k, v in errors.items() if not v <= limit]
    listed = " ".join(f"{k} {v:.1e}" for k, v in errors.items())
    verdict = "BAD " if bad or not same else "ok  "
    repeated = "" if same else " DIFFERS BETWEEN TWO CALLS"
    print(f"{verdict}{case}: {listed}{repeated} ({time.time() - begin:.1f} s)", flush=True)


def start(case):
    command = [sys.executable, __file__, DEVICE, *case.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return case, subprocess.Popen(command, text=True, **pipes)


def finish(case, child):
    """Print a case's line, or how it died; returns whether it is good."""
    try:
        output = child.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        output = child.communicate()[0] + "\nTIMED OUT"
    lines = output.strip().splitlines()
    line = next((x for x in lines if x.startswith(("ok  ", "BAD "))), None)
    if line is None:
        line = "\n   ".join([f"DIED {case}", *lines[-6:]])
    print(line, flush=True)
    return line.startswith("ok")


def run_all():
    waiting, running, good = list(CASES), [], 0
    jobs = int(os.environ.get("PROBE_JOBS", 8))
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(start(waiting.pop(0)))
        good += finish(*running.pop(0))
    print(f"probe: {good} of {len(CASES)} cases good", flush=True)


if __name__ == "__main__":
    run_one(" ".join(sys.argv[2:])) if len(sys.argv) > 2 else run_all()
