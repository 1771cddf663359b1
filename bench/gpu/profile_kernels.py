"""The kernels of attention and power spectra at the sizes of the configs, for clock and ncu.

python3 profile_kernels.py time                      a table per case: forward, both, per kernel
ncu ... python3 profile_kernels.py run paper bf16    one warm call, then one that is profiled
"""

import sys

import torch

from sitenet.ops.attention import attention
from sitenet.ops.power_spectrum import power_spectrum

# hidden, attention, interaction, width of e, heads, rows, pairs per row, sites per crystal
CASES = {
    "paper": (225, 30, 48, 48, 3, 1200, 500, 50),
    "last": (225, 30, 0, 48, 3, 1200, 500, 50),
    "sphere": (64, 32, 0, 32, 4, 16000, 36, 13),  # 576,000 pairs: many mini-batches at once
    "step": (64, 32, 0, 32, 4, 820, 32, 13),  # one mini-batch of 64 crystals
}
# rows, images per row, sites per crystal of the power spectra of `density`, always in float32
SPECTRA = {"density": (16000, 39, 13), "density step": (820, 39, 13)}
CHANNELS, RADIAL, DEGREES, MIXED = 16, 8, 5, 48


def prepare(name, kind):
    """A function that calls the op, forward alone or both ways, and the number of its pairs or
    images."""
    return prepare_spectrum(name) if name in SPECTRA else prepare_attention(name, kind)


def near(rows, per_row, sites):
    """The site of each pair or image: sites of the row's crystal in turn."""
    row = torch.arange(rows, device="cuda").repeat_interleave(per_row)
    column = torch.arange(rows * per_row, device="cuda") % per_row
    return (row // sites * sites + column * sites // per_row).clamp(max=rows - 1).int()


def prepare_spectrum(name):
    rows, per_row, sites = SPECTRA[name]
    torch.manual_seed(0)
    images, products = rows * per_row, RADIAL * CHANNELS
    values = torch.randn(rows, CHANNELS, device="cuda")
    mix = torch.randn(DEGREES, products, MIXED, device="cuda") / products**0.5
    radial, vectors = (torch.randn(images, n, device="cuda") for n in (RADIAL, 3))
    offsets = torch.arange(rows + 1, device="cuda") * per_row
    leaves = values.requires_grad_(), mix.requires_grad_()
    rest = radial, vectors, offsets, near(rows, per_row, sites)

    def call(both=True):
        with torch.set_grad_enabled(both):
            y = power_spectrum(*leaves, *rest, check_indices=False)
        if both:
            torch.autograd.grad(y, leaves, y.detach())

    return call, images


def prepare_attention(name, kind):
    hidden, a_dim, interaction, width, heads, rows, per_row, sites = CASES[name]
    torch.manual_seed(0)
    pairs, columns = rows * per_row, hidden + a_dim + interaction
    shapes = (rows, columns), (rows, columns), (pairs, width), (columns, width), (heads, hidden)
    inputs = [torch.randn(*s, device="cuda") / 6 for s in shapes]
    if kind == "bf16":
        inputs[2] = inputs[2].bfloat16()
    offsets = torch.arange(rows + 1, device="cuda") * per_row
    rest = torch.zeros(pairs, device="cuda"), offsets, near(rows, per_row, sites)
    leaves = [x.requires_grad_() for x in inputs]
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")

    def call(both=True):
        with torch.set_grad_enabled(both):
            outputs = attention(*leaves, *rest, attention_dim=a_dim)[:2]
        outputs = [y for y in outputs if y is not None]
        if both:
            torch.autograd.grad(outputs, leaves, [y.detach() for y in outputs])

    return call, pairs


def seconds(function, repeats=20):
    """Median time of a call by CUDA events, after three calls to warm up."""
    for _ in range(3):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in events)[repeats // 2] / 1e3


def run_for_ncu(name, kind):
    call, _ = prepare(name, kind)
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def print_peaks():
    """What the card reaches in a copy and in a bf16 product."""
    x = torch.randint(0, 99, (1 << 28,), dtype=torch.int32, device="cuda")
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = seconds(lambda: x.clone()), seconds(lambda: m @ m)
    print(
        f"{torch.cuda.get_device_name()}: copy {2 * x.nbytes / copy / 1e12:.2f} TB/s, "
        f"bf16 product {2 * 8192**3 / product / 1e12:.0f} TFLOP/s",
        flush=True,
    )


def print_times():
    print_peaks()
    kinds = {name: ("bf16", "tf32", "fp32") for name in CASES} | dict.fromkeys(SPECTRA, ("fp32",))
    for name in kinds:
        for kind in kinds[name]:
            call, pairs = prepare(name, kind)
            forward, both = seconds(lambda: call(False)), seconds(call)  # noqa: B023
            what = "images" if name in SPECTRA else "pairs"
            times = "   ".join(
                f"{title} {t * 1e6:8.1f} us {pairs / t / 1e9:6.3f} G {what}/s"
                for title, t in (("forward", forward), ("both", both))
            )
            print(f"{name:13}{kind:5} {times}", flush=True)
            if kind == kinds[name][0]:
                print_kernels(call)


def print_kernels(call, calls=5):
    """Time and number of launches of each kernel per call."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    rows = [(k.self_device_time_total, k.count, k.key) for k in profile.key_averages()]
    for time, count, key in sorted(rows, reverse=True)[:14]:
        name = key.replace("sitenet::cuda::(anonymous namespace)::", "").split("(")[0]
        name = name.removeprefix("void ")[:70]
        print(f"          {time / calls:9.1f} us {count / calls:5.1f} x {name}", flush=True)


if __name__ == "__main__":
    run_for_ncu(*sys.argv[2:4]) if sys.argv[1] == "run" else print_times()
