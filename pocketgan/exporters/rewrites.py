"""Networks in operations that phones' runtimes are fast at: equal outputs, other graphs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.fusion import fuse_conv_bn_eval

MERGED_UPSAMPLING = "upsample_nearest2d"


def fold_batch_norms(network: nn.Module) -> None:
    """Put each batch norm that follows a convolution in an ``nn.Sequential`` into that convolution, in place.

    Converters do so themselves, but only where the two are still neighbours once they have rewritten the graph.

    Args:
        network: In eval mode.
    """
    for sequence, name, following in _neighbours(network):
        convolution, norm = sequence.get_submodule(name), sequence.get_submodule(following)
        if isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d) and type(norm) is nn.BatchNorm2d:
            if norm.running_mean is None:
                continue
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            if transposed and convolution.groups > 1:
                continue  # fuse_conv_bn_eval scales the wrong axis there
            sequence.set_submodule(name, fuse_conv_bn_eval(convolution, norm, transpose=transposed))
            sequence.set_submodule(following, nn.Identity())


def merge_upsamplings(network: nn.Module) -> int:
    """Make one transposed convolution of nearest upsampling by 2 and a 3×3 convolution, in place.

    Both are linear, and so is what they do one after the other: a transposed convolution of stride 2 whose 4×4 kernel
    is the 3×3 one convolved with 2×2 ones. It multiplies 16 times where the two multiply 36 times, and no larger map
    is written in between. The edges are equal, since zeros stand outside of both.

    Args:
        network: Its batch norms may be folded before or after.

    Returns:
        How many were merged: those that are neighbours in an ``nn.Sequential``.
    """
    number = 0
    for sequence, name, following in _neighbours(network):
        upsampling, convolution = sequence.get_submodule(name), sequence.get_submodule(following)
        if not (_doubles(upsampling) and isinstance(convolution, nn.Conv2d) and _is_plain_3_by_3(convolution)):
            continue
        kernel = convolution.weight.detach()
        outputs, inputs = kernel.shape[:2]
        # F.conv2d correlates, hence the flip
        merged = F.conv2d(kernel.flip(-2, -1).reshape(-1, 1, 3, 3), torch.ones(1, 1, 2, 2), padding=1)
        transposed = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=convolution.bias is not None)
        with torch.no_grad():
            transposed.weight.copy_(merged.reshape(outputs, inputs, 4, 4).transpose(0, 1))
            if convolution.bias is not None and transposed.bias is not None:
                transposed.bias.copy_(convolution.bias)
        sequence.set_submodule(name, nn.Identity())
        sequence.set_submodule(following, transposed)
        number += 1
    return number


class _FewOutputs(nn.Module):
    """A convolution of few output channels as one of four times as many that steps over two pixels, and a shuffle.

    Processors compute output channels side by side in vectors, which three leave half empty and more. Each of four
    neighbouring pixels gets a kernel of its own, one wider and higher: the products grow by (k + 1)² / k², the vectors
    fill. For ONNX's export alone: the shuffle is its operation.

    Args:
        convolution: To stand for.
        keep_weights: Compute the four kernels from ``weight`` while running, so that it can still be exchanged.
    """

    def __init__(self, convolution: nn.Conv2d, keep_weights: bool) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding, self.keep_weights = convolution.kernel_size[0] // 2, keep_weights
        if not keep_weights:
            self.windows = nn.Parameter(self._windows().detach(), requires_grad=False)

    def _windows(self) -> Tensor:
        shifted = [F.pad(self.weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
        return torch.cat(shifted)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features (B, C, H, W)."""
        if not all(statically_known_true(side % 2 == 0) for side in features.shape[-2:]):
            return F.conv2d(features, self.weight, self.bias, padding=self.padding)
        windows = self._windows() if self.keep_weights else self.windows
        bias = None if self.bias is None else torch.cat([self.bias] * 4)
        pixels = F.conv2d(features, windows, bias, stride=2, padding=self.padding)
        batch, channels, height, width = pixels.shape
        # torch's pixel_shuffle becomes mode CRD, which NNAPI lacks, and Core ML for sizes that are not known
        shape = (batch, channels // 4, 2 * height, 2 * width)
        shuffled: Tensor = torch.onnx.ops.symbolic(
            "DepthToSpace", (pixels,), {"blocksize": 2, "mode": "DCR"}, dtype=pixels.dtype, shape=shape
        )
        return shuffled


def widen_few_outputs(network: nn.Module, keep_weights: bool) -> None:
    """For ONNX, have large convolutions of few output channels compute four pixels at a time, in place.

    See ``_FewOutputs``.

    Args:
        network: Its equal is exported at even heights and widths; what is odd, or not known, is computed as before.
        keep_weights: Weights stay as they are, to be exchanged later.
    """
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Conv2d) or module.out_channels > 4 or not _keeps_size(module):
            continue
        if module.kernel_size[0] >= 5:  # below, the products grow as much as the vectors fill
            network.set_submodule(name, _FewOutputs(module, keep_weights))


def _neighbours(network: nn.Module) -> list[tuple[nn.Sequential, str, str]]:
    # a subclass may run its modules in another order
    sequences = [module for module in network.modules() if type(module) is nn.Sequential]
    pairs = []
    for sequence in sequences:
        names = [name for name, _ in sequence.named_children()]
        pairs += [(sequence, name, following) for name, following in itertools.pairwise(names)]
    return pairs


def _doubles(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Upsample)
        and module.mode == "nearest"
        and module.size is None
        and module.scale_factor in (2, (2, 2))
    )


def _is_plain_3_by_3(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == (3, 3) and _keeps_size(convolution)


def _keeps_size(convolution: nn.Conv2d) -> bool:
    """Whether a kernel of odd sides goes over every pixel, zeros around."""
    side = convolution.kernel_size[0]
    return (
        convolution.kernel_size == (side, side)
        and side % 2 == 1
        and convolution.stride == (1, 1)
        and convolution.padding in ((side // 2, side // 2), "same")
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention (B, heads, N, d) in batched products of matrices.

    torch's own decomposition guards against rows that are wholly masked (``eq``, ``any``, ``where``), which only a mask
    can bring about.
    """
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return NotImplemented
    lead, width = query.shape[:-1], value.shape[-1]
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    query, key, value = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (query, key, value))
    return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value).reshape(*lead, width)


def layer_norm(
    features: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Layer norm in means over the last two of four dimensions, the only means that XNNPACK takes."""
    del cudnn_enable
    size = 1
    for side in normalized_shape:
        size *= side
    rows = features.reshape(1, -1, size, 1)
    centred = rows - rows.mean((2, 3), keepdim=True)
    normed = centred * torch.rsqrt((centred * centred).mean((2, 3), keepdim=True) + eps)
    return _affine(normed.reshape(features.shape), weight, bias)


def group_norm(
    features: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Group norm of (B, C, H, W) in means over pixels, then over the channels of a group."""
    del cudnn_enabled
    if features.ndim != 4:
        return NotImplemented
    centred = features - _group_mean(features, num_groups)
    variance = _group_mean(centred * centred, num_groups)
    shape = (1, -1, 1, 1)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight.reshape(shape)
    return _affine(centred * scale, None, None if bias is None else bias.reshape(shape))


def instance_norm(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Instance norm as group norm with one channel a group."""
    del running_mean, running_var, momentum
    if not use_input_stats or features.ndim != 4:
        return NotImplemented
    return group_norm(features, features.shape[1], weight, bias, eps, cudnn_enabled)


def _padding(features: Tensor, pad: Sequence[int], indices: Callable[[int, int, int], list[int]]) -> Tensor:
    """Pad (B, C, H, W) by joining its own columns and rows.

    Args:
        features: What is padded.
        pad: Left, right, top, bottom.
        indices: Of a side's length, the pixels before and those after: which columns or rows to join around it.
    """
    left, right, top, bottom = pad
    for dimension, before, after in ((3, left, right), (2, top, bottom)):
        length = features.shape[dimension]
        around = [features.narrow(dimension, index, 1) for index in indices(length, before, after)]
        features = torch.cat([*around[:before], features, *around[before:]], dimension)
    return features


def _reflected(length: int, before: int, after: int) -> list[int]:
    return [*range(before, 0, -1), *range(length - 2, length - 2 - after, -1)]


def _replicated(length: int, before: int, after: int) -> list[int]:
    return [0] * before + [length - 1] * after


def pad(features: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Reflection and replication padding of (B, C, H, W); torch's own decomposition looks every pixel up."""
    del value
    if mode not in _AROUND or features.ndim != 4 or len(pad) != 4 or min(pad) < 0:
        return NotImplemented
    return _padding(features, pad, _AROUND[mode])


_AROUND = {"reflect": _reflected, "replicate": _replicated}


def _group_mean(features: Tensor, groups: int) -> Tensor:
    """Each channel's group's mean over channels and pixels, (B, C, 1, 1)."""
    batch, channels = features.shape[:2]
    mean = features.mean((2, 3), keepdim=True)
    if groups == channels:
        return mean
    grouped = mean.reshape(batch, groups, channels // groups, 1)
    # by subtraction, since the group's mean would have to be expanded to its channels
    return mean - (grouped - grouped.mean((2, 3), keepdim=True)).reshape(mean.shape)


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias


def _split(tensor: Tensor, split_size: int, dim: int = 0) -> list[Tensor]:
    length = tensor.shape[dim]
    return [tensor.narrow(dim, start, min(split_size, length - start)) for start in range(0, length, split_size)]


def _expand(tensor: Tensor, size: Sequence[int], *, implicit: bool = False) -> Tensor:
    """Expand to the size that it has already, as of one photo's constants: nothing."""
    del implicit
    if len(size) == tensor.ndim and all(new in (-1, old) for new, old in zip(size, tensor.shape, strict=True)):
        return tensor.view(tensor.shape)
    return NotImplemented


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What ``ExportedProgram.run_decompositions`` takes, for XNNPACK."""
    aten = torch.ops.aten
    return {
        aten.scaled_dot_product_attention.default: attention,
        aten.layer_norm.default: layer_norm,
        aten.group_norm.default: group_norm,
        aten.instance_norm.default: instance_norm,
        aten.pad.default: pad,
        aten.split.Tensor: _split,
        aten.expand.default: _expand,
    }
