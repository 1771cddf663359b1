"""Ops whose arguments stand once, in named tuples: their schemas, and the calls of their kernels.

The function that allocates the outputs of an op declares its arguments, some of them gathered in
named tuples. The schema follows from its signature, and it is also the fake implementation. A
kernel takes the sizes, and the addresses of its tensors in the order of its params struct
(``csrc/bindings.h``).
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from sitenet.ops import _C, checks, launch, need_cuda, scratch
from sitenet.ops.rows import BySite, sorted_by_site

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    torch.dtype: "ScalarType",
    int: "int",
    bool: "bool",
    float: "float",
    list[int]: "int[]",
    list[float]: "float[]",
}


def _parameters(function: Callable) -> dict[str, Any]:
    """Name and type of each parameter of a function."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def schema(name: str, outputs: Callable) -> str:
    """Return the schema of an op from the signature of the function that allocates its outputs."""
    arguments = []
    for parameter, kind in _parameters(outputs).items():
        fields = get_type_hints(kind) if hasattr(kind, "_fields") else {parameter: kind}
        arguments += [f"{_SCHEMA_TYPES[of_field]} {field}" for field, of_field in fields.items()]
    returned = get_type_hints(outputs)["return"]
    results = ", ".join(_SCHEMA_TYPES[kind] for kind in get_args(returned) or (returned,))
    return f"{name}({', '.join(arguments)}) -> ({results})"


def flat(function: Callable, like: Callable, *first: Any) -> Callable:
    """Return a function of an op's flat arguments that calls ``function(*first, ...)``.

    The arguments are gathered into the tuples that the signature of ``like`` names.
    """
    kinds = list(_parameters(like).values())

    def call(*arguments: Any) -> Any:
        rest = iter(arguments)
        gathered = (
            kind(*islice(rest, len(kind._fields))) if hasattr(kind, "_fields") else next(rest)
            for kind in kinds
        )
        return function(*first, *gathered)

    return call


_SUFFIX = {
    (torch.float32, torch.float32): "f32",
    (torch.float64, torch.float64): "f64",
    (torch.float32, torch.bfloat16): "bf16",
    (torch.float64, torch.float32): "f64_f32",
}

Dtypes = tuple[torch.dtype, torch.dtype]  # of the sums, and of e or of distances
# run(name, dtypes, shape, tensors in the order of the kernel's params struct)
Run = Callable[[str, Dtypes, Any, Iterable[Tensor | None]], None]


def _suffix(name: str, dtypes: Dtypes) -> str:
    if dtypes not in _SUFFIX:
        raise TypeError(
            f"{name} takes float32, float64, or float32 with e in bfloat16;"
            f" got {dtypes[0]} with e in {dtypes[1]}"
        )
    return _SUFFIX[dtypes]


def _addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]


def run_cpu(
    name: str,
    dtypes: Dtypes,
    shape: Any,
    tensors: Iterable[Tensor | None],
) -> None:
    kernel = getattr(_C, f"{name}_{_suffix(name, dtypes)}_cpu")
    kernel(shape, _addresses(tensors), torch.get_num_threads())


def run_cuda(
    name: str,
    dtypes: Dtypes,
    shape: Any,
    tensors: Iterable[Tensor | None],
) -> None:
    need_cuda()
    suffix = _suffix(name, dtypes)
    if suffix == "f32" and name.startswith("attention") and allows_tf32():
        suffix = "tf32"
    tensors = list(tensors)
    like = tensors[0]
    assert like is not None  # the first tensor of every kernel is an input
    memory = scratch(getattr(_C, f"{name}_scratch_{suffix}_cuda")(shape), like)
    kernel = getattr(_C, f"{name}_{suffix}_cuda")
    launch(kernel, like, shape, _addresses(tensors), memory.data_ptr())


def by_site_for(run: Run, by_site: BySite, sites: Tensor, num_sites: int) -> BySite:
    """The list of pairs by site that a backward kernel reads: on a GPU the one given, or one made
    here; none on a CPU."""
    if run is not run_cuda:
        return BySite()
    if by_site.pairs_of_site is None or by_site.offsets_of_site is None:
        return sorted_by_site(sites, num_sites)
    checks.check_by_site(by_site, sites, num_sites)
    return by_site


def allows_tf32() -> bool:
    """Return whether torch lets products of float32 take tf32 factors on a GPU."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # once it is set, the older query raises
        return matmul.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"
