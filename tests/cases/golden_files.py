"""Numbers computed by the published code, from the folder that SITENET_GOLDEN names.

The README of that folder describes the format.
"""

import json
import warnings

import numpy as np
import torch
from conftest import GOLDEN

from sitenet import Pairs
from sitenet.model.sitenet import SiteNet

FILES = sorted(p for p in GOLDEN.glob("*.npz") if not p.name.startswith("_"))


def read(path):
    """Return the arrays of a file, and its model in float64."""
    z = dict(np.load(path, allow_pickle=False))
    if "state_ref" in z:
        state = dict(np.load(path.parent / str(z["state_ref"]), allow_pickle=False))
    else:
        state = {k.removeprefix("state/"): v for k, v in z.items() if k.startswith("state/")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # configs without a fused kernel say so
        model = SiteNet.from_published(
            json.loads(str(z["config_json"])), {k: torch.as_tensor(v) for k, v in state.items()}
        )
    return z, model.double()


def pairs_of(z, device):
    """Return the stored pair list as CSR rows."""
    offsets, sites, first = [0], [], 0
    for n, images in zip(z["prim_size"], z["images"], strict=True):
        for _ in range(n):
            offsets.append(offsets[-1] + n * images)
            sites.append(first + np.arange(n * images) // images)
        first += n
    sites = np.concatenate(sites)
    return Pairs(
        offsets=torch.as_tensor(offsets, device=device),
        sites=torch.as_tensor(sites, dtype=torch.int32, device=device),
        multiplicity=torch.ones(len(sites), dtype=torch.int32, device=device),
        distance=torch.as_tensor(z["interaction"][..., 0].reshape(-1), device=device),
        numbers=torch.as_tensor(z["atomic_id"], device=device),
        oxidation=torch.as_tensor(z["oxidation"][:, 0], dtype=torch.float64, device=device),
        count=torch.ones(first, dtype=torch.int32, device=device),
        orbit=torch.arange(first, dtype=torch.int32, device=device),
        crystals=torch.as_tensor(np.cumsum([0, *z["prim_size"]]), device=device),
        num_sites=torch.as_tensor(z["prim_size"], device=device),
        images=torch.as_tensor(z["images"], device=device),
    )


def inputs(z, model, pairs, dtype):
    """Return the model's inputs: site features with the embedding in front, and pair features."""
    site_features = torch.as_tensor(z["site_features"], dtype=dtype, device=pairs.numbers.device)
    oxidation = pairs.oxidation[:, None].to(dtype)
    x = torch.cat([model.embedding(pairs.numbers), site_features, oxidation], 1)
    return x, torch.as_tensor(z["interaction"], dtype=dtype, device=x.device)
