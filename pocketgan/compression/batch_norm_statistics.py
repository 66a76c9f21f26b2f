"""Batch norm's statistics of a network that was changed otherwise than by training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Measure the running statistics anew, in place; without batch norm do nothing.

    A moving average of weights, and a network that lost channels, have activations that nothing has measured: the
    statistics that they inherit belong to other weights. ``torch.optim.swa_utils.update_bn`` does the same for networks
    of one input.

    Args:
        network: Its modes are left as they are.
        batches: Inputs of the network; each counts alike.

    Raises:
        ValueError: There is no batch.
    """
    norms = {module: module.momentum for module in network.modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return
    training = {module: module.training for module in network.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    count = 0
    network.train()
    for batch in batches:
        network(*batch)
        count += 1
    for module, mode in training.items():
        module.training = mode
    for norm, momentum in norms.items():
        norm.momentum = momentum
    if not count:
        raise ValueError("there is no batch to measure batch norm's statistics on; give at least one")
