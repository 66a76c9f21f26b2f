"""What tells one set of weights, or one configured object, from another."""

import hashlib
import inspect
from typing import Any

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def constructor_arguments(configured: object) -> dict[str, Any]:
    """The arguments an object was made with, of a class that keeps each under the argument's name."""
    return {name: getattr(configured, name) for name in inspect.signature(type(configured)).parameters}
