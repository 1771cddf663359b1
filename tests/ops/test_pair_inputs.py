"""Features and multiplicities of pairs against sitenet.reference in float64."""

import pytest
import torch
from step_checks import KINDS, check_log_multiplicity, check_pair_inputs, described

from sitenet.config import InteractionFeature
from sitenet.ops import pair_inputs as ops
from sitenet.ops.pair_inputs import MOST_FEATURES, log_multiplicity, pair_inputs

F32, F64 = torch.float32, torch.float64
ROWS = {"edges": (3, 0, 1, 40), "empty": (0, 0), "none": ()}


@pytest.fixture(params=["plain", "op"])
def path(request, monkeypatch):
    """Plain torch, as on a CPU, and the ops, as on a GPU."""
    monkeypatch.setattr(ops, "fuses", lambda x: request.param == "op")


@pytest.mark.parametrize(
    ("dtype", "stored"), [(F64, F64), (F32, F32), (F64, F32), (F32, F64)], ids=str
)
@pytest.mark.parametrize("rows", ROWS)
def test_pair_inputs(path, rows, dtype, stored):
    check_pair_inputs(ROWS[rows], dtype, stored)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_log_multiplicity(path, dtype):
    check_log_multiplicity(dtype)


def test_opcheck():
    columns = described((3, 0, 5), F32)
    options = [0, 2, 3], [1.0, 2.0, 0.5], [0.0, 10.0, 0.0], 4, 5.0, 1
    op = torch.ops.sitenet.pair_inputs.default
    torch.library.opcheck(op, (*columns, F64, *options))
    weighed = torch.arange(8, dtype=torch.int32), columns[3], op(*columns, F32, *options)
    torch.library.opcheck(torch.ops.sitenet.log_multiplicity.default, (*weighed, 2.0, 5.0))


def test_a_gradient_flows_to_distances_where_one_is_wanted(path):
    offsets, sites, charges, distance, sine = described((4, 2), F64)
    distance = distance.clamp(min=0.5).requires_grad_()
    features = [InteractionFeature(name, power, bool(clip)) for name, power, clip in KINDS]

    def of_distance(distance):
        return pair_inputs(offsets, sites, charges, distance, sine, features, basis=3, reach=5.0)

    assert torch.autograd.gradcheck(of_distance, distance)
    assert not of_distance(distance.detach()).requires_grad


def test_strides_are_honoured(path):
    columns = described((4, 2), F32)
    features = [InteractionFeature(name, power, bool(clip)) for name, power, clip in KINDS]
    want = pair_inputs(*columns, features)
    views = [torch.stack([x, x], 1)[:, 0] for x in columns]
    assert torch.equal(pair_inputs(*views, features), want)
    multiplicity = torch.arange(1, 7, dtype=torch.int32)
    views = [torch.stack([x, x], -1)[..., 0] for x in (multiplicity, columns[3], want)]
    assert torch.equal(log_multiplicity(*views), log_multiplicity(multiplicity, columns[3], want))


def test_what_cannot_be_computed_is_refused():
    offsets, sites, charges, distance, sine = described((2,), F32)
    coulomb, plain = InteractionFeature("coulomb_matrix"), InteractionFeature("distance_matrix")
    with pytest.raises(ValueError, match="needs find_pairs"):
        pair_inputs(offsets, sites, charges, distance, None, [coulomb])
    with pytest.raises(ValueError, match="Coulomb features need charges, got None"):
        pair_inputs(offsets, sites, None, distance, sine, [coulomb])
    with pytest.raises(ValueError, match=f"at most {MOST_FEATURES} pair features, got 33"):
        pair_inputs(offsets, sites, charges, distance, sine, [plain] * 33)
