"""2:4 weights in torch's own compressed form, for NVIDIA GPUs."""

import copy

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from pocketgan.compression.n_to_m_mask import is_n_to_m

_CAPABILITY = (8, 0)
# multiples of a weight's rows and columns that torch's kernels take in 16 bits
_ROWS, _COLUMNS = 32, 64


def with_semi_structured_weights(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """Copy a network with its 2:4 linear weights in torch's semi-structured form.

    torch has kernels for linear layers alone: convolutions stay as they are. Whether it is faster depends on the sizes;
    SparseDM's own log shows no gain at 512 features. Time it before you use it.

    Args:
        network: Without masks, as ``PairedGAN.deployed`` and ``bake_masks`` leave it, on a GPU in half or bfloat16.

    Returns:
        The copy, which computes and cannot train, and the names of the layers in the new form.

    Raises:
        RuntimeError: There is no NVIDIA GPU with tensor cores for it.
        ValueError: No linear layer is 2:4, of 16 bits, on the GPU and of a size that the kernels take.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _CAPABILITY:
        raise RuntimeError(
            "semi-structured weights need an NVIDIA GPU of compute capability 8.0 or above, which is not here; on "
            "other devices use the network as it is: its zeros cost as much as any number"
        )
    network, converted = copy.deepcopy(network), []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and _is_eligible(layer.weight):
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
            converted.append(name)
    if not converted:
        raise ValueError(
            f"no linear layer has a 2:4 weight in half or bfloat16 on the GPU with rows in multiples of {_ROWS} and "
            f"columns in multiples of {_COLUMNS}; train with NToMSparsity, and call .half().cuda() first"
        )
    return network, converted


def _is_eligible(weight: torch.Tensor) -> bool:
    rows, columns = weight.shape
    return (
        weight.is_cuda
        and weight.dtype in {torch.float16, torch.bfloat16}
        and not rows % _ROWS
        and not columns % _COLUMNS
        and is_n_to_m(weight, 2, 4)
    )
