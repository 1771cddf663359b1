"""Count the instructions of the attention kernels per pair, from compiled code. Needs no GPU.

    python bench/count_instructions.py [--cuobjdump PATH]

Compiles ``csrc/cuda/attention`` with nvcc for sm_90, finds the loops over columns in the machine
code of the kernels for known shapes (``known_shapes.cuh``), and prints two tables in Markdown:
instructions per warp and step (16 pairs, 16 columns), and what they come to per pair. A
multiprocessor issues 4 instructions per clock. ``cuobjdump`` is part of the CUDA toolkit, and of
the package ``nvidia-cuda-cuobjdump``.

Where a loop branches, the count is of the path with the most 8- and 16-byte loads (whole rows, no
padding), and of these the shortest: what all steps but the first and the last of a group take. What
a warp does outside these loops is not counted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda" / "attention"
PAIRS, ISSUED = 16, 4  # pairs per warp, instructions per clock

# Template arguments of the shape, and steps of the hidden, attention and interaction columns.
CONFIGS = {"paper": ("Li3ELi3E", (15, 2, 3)), "sphere": ("Li4ELi2E", (4, 2, 0))}
HIDDEN, ATTENTION, INTERACTION = range(3)
# The loops over columns in the order of the code, and the columns that they run over.
LOOPS = {
    ("forward", "attention_forward_kernel"): {
        "hidden columns": HIDDEN,
        "interaction columns": INTERACTION,
        "attention columns": ATTENTION,
    },
    ("backward", "gradient_kernel"): {
        "norm of interaction columns": INTERACTION,
        "norm of attention columns": ATTENTION,
        "dz of hidden columns": HIDDEN,
        "dz of attention columns": ATTENTION,
        "dz of interaction columns": INTERACTION,
    },
}
KINDS = {
    "FP32": ("FADD", "FMUL", "FFMA", "FMNMX"),
    "special functions": ("MUFU",),
    "tensor cores": ("HMMA", "MOVM"),
    "memory": ("LDG", "STG", "LDS", "STS"),
    "conversions": ("F2FP",),
}
MISH_PER_STEP = 16  # special functions of 8 activations of a lane


class Instruction(NamedTuple):
    address: int
    predicate: str | None
    name: str
    arguments: str


def disassemble(source: str, folder: Path, cuobjdump: str) -> dict[str, list[Instruction]]:
    """Compile a file of the attention block; return the instructions of each kernel by name."""
    cubin = folder / f"{source}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-cubin", "-arch=sm_90", SOURCES / f"{source}.cu"]
    subprocess.run([*command, "-o", cubin], check=True)
    run = subprocess.run([cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True)
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
    kernels: dict[str, list[Instruction]] = {}
    for text in run.stdout.splitlines():
        if name := re.search(r"Function : (\S+)", text):
            instructions = kernels[name[1]] = []
        elif match := line.search(text):
            instructions.append(Instruction(int(match[1], 16), *match.groups()[1:]))
    return kernels


def successors(code: list[Instruction]) -> list[list[int]]:
    """Return the places that each instruction may be followed by."""
    place = {each.address: i for i, each in enumerate(code)}
    result = []
    for i, (_, predicate, name, arguments) in enumerate(code):
        after = [i + 1] if i + 1 < len(code) else []
        if name.startswith("BRA"):
            target = place[int(re.findall(r"0x[0-9a-f]+", arguments)[-1], 16)]
            always = not predicate and name in ("BRA", "BRA.U") and not re.match("!?U?P", arguments)
            after = [target] if always else [*after, target]
        elif name.split(".")[0] in ("EXIT", "RET", "BRX") and not predicate:
            after = []
        result.append(after)
    return result


def reverse_postorder(after: list[list[int]]) -> list[int]:
    order, seen, stack = [], {0}, [(0, iter(after[0]))]
    while stack:
        place, rest = stack[-1]
        for following in rest:
            if following not in seen:
                seen.add(following)
                stack.append((following, iter(after[following])))
                break
        else:
            stack.pop()
            order.append(place)
    return order[::-1]


def loops(code: list[Instruction]) -> dict[int, tuple[set[int], list[int]]]:
    """Return the natural loops of a kernel: by head, its places and those that lead back to it."""
    after = successors(code)
    order = reverse_postorder(after)
    rank = {place: i for i, place in enumerate(order)}
    before = defaultdict(list)
    for place in order:
        for following in after[place]:
            before[following].append(place)
    dominator, changed = {0: 0}, True  # of each place, the closest other place on all ways to it
    while changed:
        changed = False
        for place in order[1:]:
            known = [x for x in before[place] if x in dominator]
            closest = known[0]
            for other in known[1:]:
                while closest != other:
                    if rank[closest] > rank[other]:
                        closest = dominator[closest]
                    else:
                        other = dominator[other]
            changed |= dominator.get(place) != closest
            dominator[place] = closest

    def dominates(head: int, place: int) -> bool:
        while place not in (head, 0):
            place = dominator[place]
        return place == head

    result: dict[int, tuple[set[int], list[int]]] = {}
    for place in order:
        for head in after[place]:
            if not dominates(head, place):
                continue
            body, ends = result.setdefault(head, ({head}, []))
            ends.append(place)
            stack = [place]
            while stack:
                if (each := stack.pop()) not in body:
                    body.add(each)
                    stack += before[each]
    return result


def usual_path(code: list[Instruction], head: int, body: set[int], ends: list[int]) -> Counter:
    """Count the instructions of one way through a loop, as the module says."""
    after = successors(code)
    rank = {place: i for i, place in enumerate(reverse_postorder(after))}

    def key(name: str) -> tuple[int, int]:
        return int(name.startswith("MUFU")), int(name.startswith(("LDG.E.128", "LDG.E.64")))

    paths = {head: {key(code[head].name): Counter([code[head].name.split(".")[0]])}}
    for place in sorted(body, key=rank.__getitem__):
        for following in after[place] if place in paths else ():
            if following not in body or rank[following] <= rank[place]:
                continue
            special, wide = key(code[following].name)
            known = paths.setdefault(following, {})
            for (a, b), counts in paths[place].items():
                longer = counts + Counter([code[following].name.split(".")[0]])
                best = known.get((a + special, b + wide))
                if best is None or best.total() > longer.total():
                    known[a + special, b + wide] = longer
    through = [
        (wide, -counts.total(), counts)
        for end in ends
        for (special, wide), counts in paths.get(end, {}).items()
        if special == MISH_PER_STEP
    ]
    return max(through, key=lambda each: each[:2])[2]


def loops_over_columns(code: list[Instruction]) -> list[Counter]:
    """Count the instructions per step of the innermost loops with activations and products."""

    def has(body: set[int], name: str) -> bool:
        return any(code[place].name.startswith(name) for place in body)

    relevant = {
        head: (body, ends)
        for head, (body, ends) in loops(code).items()
        if has(body, "MUFU.EX2") and has(body, "HMMA")
    }
    return [
        usual_path(code, head, *relevant[head])
        for head in sorted(relevant)
        if not any(other in relevant[head][0] for other in relevant if other != head)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cuobjdump", default="cuobjdump", help="its path [default: on PATH]")
    cuobjdump = parser.parse_args().cuobjdump
    with tempfile.TemporaryDirectory() as folder:
        kernels = {x: disassemble(x, Path(folder), cuobjdump) for x in ("forward", "backward")}
    titles = ["config", "loop", "steps", "instructions", *KINDS, "other"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    totals = []
    for config, (arguments, steps) in CONFIGS.items():
        for (source, kernel), names in LOOPS.items():
            pattern = f"{kernel}Ift.*{arguments}"
            code = next(x for name, x in kernels[source].items() if re.search(pattern, name))
            counted = loops_over_columns(code)
            if len(counted) != len(names):
                raise SystemExit(f"{kernel}: expected {len(names)} loops, found {len(counted)}")
            total = 0
            for (name, group), counts in zip(names.items(), counted, strict=True):
                total += steps[group] * counts.total()
                kinds = [sum(counts[x] for x in KINDS[kind]) for kind in KINDS]
                row = [steps[group], counts.total(), *kinds, counts.total() - sum(kinds)]
                print(f"| {config} | {name} | " + " | ".join(map(str, row)) + " |")
            totals.append((config, kernel, total))
    print("\n| config | kernel | instructions per 16 pairs | clocks per pair |\n|---|---|---|---|")
    for config, kernel, total in totals:
        print(f"| {config} | {kernel} | {total} | {total / PAIRS / ISSUED:.1f} |")


if __name__ == "__main__":
    main()
