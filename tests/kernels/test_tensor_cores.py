"""The emulated instructions of tensor cores, against their definitions in the PTX ISA.

The sections of "Warp-level matrix instructions" give, for each lane and each element of its
registers, a row and a column of the matrix. They are written out here as they stand there, with
``group`` for the manual's groupID, and ``thread`` for its threadID_in_group.
"""

import pytest
import torch

LANES = torch.arange(32)[:, None]
GROUP, THREAD = LANES // 4, LANES % 4


def places_of_mma_bf16():
    """mma.m16n8k16 with .bf16: a0..a7 (16 x 16), b0..b3 (16 x 8), c0..c3 (16 x 8)."""
    i = torch.arange(8)
    row = torch.where((i < 2) | ((4 <= i) & (i < 6)), GROUP, GROUP + 8)
    column = torch.where(i < 4, THREAD * 2 + (i & 1), THREAD * 2 + (i & 1) + 8)
    j = torch.arange(4)
    row_of_b = torch.where(j < 2, THREAD * 2 + (j & 1), THREAD * 2 + (j & 1) + 8)
    return (row, column), (row_of_b, GROUP.expand(32, 4)), places_of_sums()


def places_of_mma_tf32():
    """mma.m16n8k8 with .tf32: a0..a3 (16 x 8), b0..b1 (8 x 8), c0..c3 (16 x 8)."""
    i = torch.arange(4)
    row = torch.where((i == 0) | (i == 2), GROUP, GROUP + 8)
    column = torch.where(i < 2, THREAD, THREAD + 4)
    j = torch.arange(2)
    row_of_b = torch.where(j == 0, THREAD, THREAD + 4)
    return (row, column), (row_of_b, GROUP.expand(32, 2)), places_of_sums()


def places_of_sums():
    i = torch.arange(4)
    return torch.where(i < 2, GROUP, GROUP + 8), THREAD * 2 + (i & 1)


PLACES = {"bf16": places_of_mma_bf16, "tf32": places_of_mma_tf32}


@pytest.mark.parametrize("kind", PLACES)
def test_products(module, kind):
    """D = A B + C, exactly: the factors are small integers, and so are all sums."""
    generator = torch.Generator().manual_seed(0)
    of_a, of_b, of_c = PLACES[kind]()
    depth = 16 if kind == "bf16" else 8
    a, b, c = (
        torch.randint(-9, 10, shape, generator=generator).float()
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    registers = [x[of_x].contiguous() for x, of_x in zip((a, b), (of_a, of_b), strict=True)]
    if kind == "bf16":  # two per register, the first in the low half
        registers = [x.bfloat16().view(torch.int32) for x in registers]
    else:  # the low 13 bits of a register do not count
        registers = [x.view(torch.int32) | 0x1FFF for x in registers]
    sums = c[of_c].contiguous()
    module.mma(kind == "tf32", *(x.data_ptr() for x in (*registers, sums)))
    result = torch.full((16, 8), torch.nan)
    result[of_c] = sums
    assert torch.equal(result, a @ b + c)


def test_movmatrix(module):
    """movmatrix.m8n8.trans.b16: lane 4 r + c / 2 holds columns c and c + 1 of row r."""
    matrix = torch.arange(64, dtype=torch.int16).reshape(8, 8)
    result = torch.zeros_like(matrix)
    module.transpose(matrix.data_ptr(), result.data_ptr())
    assert torch.equal(result, matrix.T)
