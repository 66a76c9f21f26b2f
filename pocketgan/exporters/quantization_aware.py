"""A short fine-tune that makes a network's weights bear int8 (torchao's quantisation-aware training)."""

import math
from functools import partial
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from pocketgan.exporters.executorch_exporter import is_quantised
from pocketgan.exporters.exporter import ExportOptions, deployable, require

_BATCH_SIZE = 2


def check_fine_tuning() -> tuple[ModuleType, ModuleType]:
    """The modules of torchao and ExecuTorch that the fine-tune needs.

    Raises:
        ImportError: One is not installed.
    """
    names = ("torchao.quantization.pt2e.quantize_pt2e", "executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    qat, xnnpack = (require(name, "Fine-tuning for int8", "executorch") for name in names)
    return qat, xnnpack


def fine_tune_for_int8(
    network: nn.Module,
    options: ExportOptions,
    images: int,
    learning_rate: float = 1e-6,
) -> nn.Module:
    """Teach a network to imitate itself under int8's rounding.

    torchao's ``prepare_qat_pt2e`` puts the rounding into the graph, by XNNPACK's scheme: weights per output channel,
    activations per tensor, in ranges that follow what they see. The loss is the L1 to the network's own float32
    edits, so no pairs are needed. What comes back is the network with other float32 weights, for any target's
    quantiser.

    Args:
        network: (B, 3, H, W) in [-1, 1] to the same; it is left as it is.
        options: Its ``calibration`` photos are trained on, its ``excluded`` layers are left unrounded.
        images: Photos to train on, over and over.
        learning_rate: Adam's at the start; it falls to zero by half a cosine.

    Returns:
        A copy in eval mode on the CPU, its batch norms folded.

    Raises:
        ImportError: ExecuTorch or torchao is not installed.
    """
    qat, xnnpack = check_fine_tuning()
    tuned = deployable(network)
    reference = deployable(network)
    photos = options.calibration
    example = photos[0].repeat(_BATCH_SIZE, 1, 1, 1)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(
        xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    )
    quantizer.set_filter_function(partial(is_quantised, options.excluded))
    prepared = qat.prepare_qat_pt2e(torch.export.export(tuned, (example,)).module(), quantizer)
    parameters = dict(prepared.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters.values(), learning_rate)
    steps = math.ceil(images / _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = torch.cat([photos[(step * _BATCH_SIZE + place) % len(photos)] for place in range(_BATCH_SIZE)])
        with torch.no_grad():
            wanted = reference(batch)
        loss = F.l1_loss(prepared(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            parameter.copy_(parameters[name])
    return tuned.requires_grad_(False)
