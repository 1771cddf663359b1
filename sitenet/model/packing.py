"""Weights in fewer bits: matrices as integers in steps of their columns.

A column of a weight matrix, which belongs to one input of a layer, is rounded to multiples of its
largest absolute value over 2^(bits - 1) - 1. With ten bits per weight, the predictions of the
models that ship change by less than a hundredth of their mean absolute error. Vectors, and matrices
of few rows such as the decoder, stay in float32.

A packed matrix is kept as three tensors: under its own name the integers (int8; of ten bits the
upper eight), ``NAME.low`` with the lower two bits of four integers per byte (uint8), and
``NAME.step`` with the step of each column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BITS = 8, 10  # per weight

LEAST_ROWS = 16  # with fewer of them, a matrix is too small to be worth a step per column
_STEP, _LOW = ".step", ".low"
_PLACES = torch.tensor([1, 4, 16, 64], dtype=torch.int16)  # of two bits in a byte


def check_bits(bits: Any) -> None:
    """Raise ValueError unless weights can be packed into so many bits."""
    if bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")


def pack(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Round weight matrices to integers; other tensors are kept as they are.

    Args:
        weights: named tensors.
        bits: bits per weight.

    Raises:
        ValueError: there is no such number of bits.
    """
    check_bits(bits)
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or len(weight) < LEAST_ROWS or not weight.is_floating_point():
            packed[name] = weight
            continue
        weight = weight.detach().float().cpu()
        most = 2 ** (bits - 1) - 1
        largest = weight.reshape(-1, weight.shape[-1]).abs().amax(0)
        step = largest.clamp_min(torch.finfo(torch.float32).tiny * most) / most
        whole = torch.round(weight / step).to(torch.int16)
        packed[name + _STEP] = step
        if bits == 8:
            packed[name] = whole.to(torch.int8)
        else:
            packed[name] = (whole >> 2).to(torch.int8)
            lower = torch.zeros(4 * _low_size(whole), dtype=torch.int16)
            lower[: whole.numel()] = (whole & 3).reshape(-1)
            packed[name + _LOW] = (lower.reshape(-1, 4) * _PLACES).sum(1).to(torch.uint8)
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Packed tensors -> weights in float32; tensors that are not packed are kept as they are.

    Raises:
        ValueError: a part of a packed matrix is missing or of a wrong type or shape; names it.
    """
    parts = (_STEP, _LOW)
    weights = {name: x for name, x in tensors.items() if not name.endswith(parts)}
    for name, x in weights.items():
        if x.dtype == torch.int8:
            step, lower = (tensors.get(name + part) for part in parts)
            weights[name] = _unpacked(name, x, step, lower)
    return weights


def _unpacked(name: str, whole: Tensor, step: Tensor | None, lower: Tensor | None) -> Tensor:
    """A matrix from its parts."""
    columns = whole.shape[-1] if whole.ndim > 1 else None
    if step is None or step.shape != (columns,) or step.dtype != torch.float32:
        raise ValueError(f"{name + _STEP} must hold a float32 step per column of {name}")
    if lower is None:
        return whole * step
    if lower.shape != (_low_size(whole),) or lower.dtype != torch.uint8:
        raise ValueError(f"{name + _LOW} must hold a byte per four numbers of {name}")
    twos = (lower[:, None].to(torch.int16) // _PLACES & 3).reshape(-1)[: whole.numel()]
    return (whole.to(torch.int16) * 4 + twos.reshape(whole.shape)) * step


def _low_size(whole: Tensor) -> int:
    """Number of bytes that hold the lower two bits of a matrix."""
    return (whole.numel() + 3) // 4
