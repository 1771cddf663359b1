"""Small cases that compute-sanitizer watches, as a script: ``python sanitizer_cases.py``."""

import spectrum_checks
import torch
from attention_blocks import DIMS, inputs, outputs_and_gradients
from attention_checks import step

from sitenet.ops import attention as ops
from sitenet.ops.geometry import minimum_image_distances
from sitenet.ops.power_spectrum import power_spectrum


def run(device):
    """Run each op forward and backward at the sizes that matter to its kernels."""
    for dims in (DIMS["tiny"], DIMS["heads"], DIMS["paper"]):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensors = inputs(dims, (3, 0, 1, 33, 90), dtype, device)
            options = dict(attention_dim=dims[1], need_logits=True)
            outputs_and_gradients(ops.attention, tensors, 5, **options)
    tensors = inputs(DIMS["tiny"], (33,), torch.float32, device)
    step(tensors[2][:, :2], tensors)
    for dtype in (torch.float32, torch.float64):
        tensors = spectrum_checks.inputs((16, 4, 5, 32), (40, 3, 0, 17), dtype, device)
        outputs_and_gradients(power_spectrum, tensors, 2)
    leaves = [torch.rand(*s, device=device) for s in ((3, 3), (9, 3), (33, 3))]
    leaves = [x.requires_grad_() for x in leaves]
    torch.autograd.grad(minimum_image_distances(*leaves).sum(), leaves)


if __name__ == "__main__":
    run("cuda")
