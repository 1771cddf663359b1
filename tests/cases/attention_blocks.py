"""Random inputs of an attention block, its outputs and their gradients."""

import torch

# hidden, attention, interaction out, width of e, heads
DIMS = {
    "paper": (225, 30, 48, 48, 3),
    "paper-last": (225, 30, 0, 48, 3),
    "tiny": (7, 3, 5, 5, 1),
    "vectors": (16, 16, 16, 16, 2),
    "heads": (33, 17, 1, 9, 8),
    "wide": (70, 40, 64, 20, 5),
}
ROWS = {
    "edges": (100, 3, 0, 31, 32, 33, 47, 48, 49, 1, 200, 0),
    "one": (1,),
    "long": (1000, 2000),
    "empty": (0, 0),
    "none": (),
}


def inputs(dims, rows, dtype, device="cpu", seed=0):
    """Return random arguments of ``attention`` for rows with these numbers of pairs."""
    hidden, a_dim, interaction, width, heads = dims
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = torch.tensor((0, *rows)).cumsum(0)
    num_pairs, num_sites, columns = int(offsets[-1]), len(rows) + 2, hidden + a_dim + interaction
    log_multiplicity = torch.randint(1, 9, (num_pairs,), generator=generator).double().log()
    log_multiplicity[::7] = -torch.inf
    sites = torch.randint(0, num_sites, (num_pairs,), generator=generator, dtype=torch.int32)
    tensors = (
        random(len(rows), columns),
        random(num_sites, columns),
        random(num_pairs, width),
        random(columns, width) / width**0.5,
        3 * random(heads, hidden) / hidden**0.5,
        log_multiplicity,
    )
    e_dtype, dtype = dtype, torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = [x.to(e_dtype if i == 2 else dtype) for i, x in enumerate(tensors)]
    return [x.to(device) for x in (*tensors, offsets, sites)]


def outputs_and_gradients(function, tensors, num_differentiable, **options):
    """Return every output, then the gradients of a fixed random combination of the outputs."""
    leaves = [x.clone().requires_grad_(i < num_differentiable) for i, x in enumerate(tensors)]
    outputs = function(*leaves, **options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for y in outputs[:2]:  # the logits carry no gradient
        if y is not None and y.requires_grad:
            g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            loss = loss + (y * g.to(y.device, y.dtype)).sum()
    if isinstance(loss, float):
        return outputs
    return [*outputs, *torch.autograd.grad(loss, leaves[:num_differentiable])]
