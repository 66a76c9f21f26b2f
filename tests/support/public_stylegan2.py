"""The public StyleGAN2 codes' state dicts and formulas, written down once more in the plainest way.

Shapes by key of NVlabs' stylegan2-ada-pytorch (training/networks.py) and rosinality's stylegan2-pytorch (model.py), and
what these codes compute from them: weights modulated for each image by itself, resampling by zeros, padding and slices,
and the order of filter and convolution of conv2d_resample's fallback.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
KERNEL = torch.outer(TAPS, TAPS) / 64


def sides_of(size: int) -> list[int]:
    return [side for side in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if side <= size]


def random_state(shapes: Shapes) -> State:
    """Random float32 numbers of these shapes; filters are what they must be."""
    random = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=random) for key, shape in shapes.items()}
    for key in state:
        if key.endswith("resample_filter"):
            state[key] = KERNEL.float()
        elif key.endswith("kernel"):
            upsamples = key.endswith(("blur.kernel", "upsample.kernel"))
            state[key] = (KERNEL * (4 if upsamples else 1)).float()
        elif key.startswith(("mapping.fc", "style.")) and key.endswith("weight"):
            state[key] *= 100
    return state


def ada_generator_shapes(widths: dict[int, int], latent: int, mapping_layers: int) -> Shapes:
    shapes: Shapes = {"mapping.w_avg": (latent,)}
    for index in range(mapping_layers):
        shapes |= {f"mapping.fc{index}.weight": (latent, latent), f"mapping.fc{index}.bias": (latent,)}
    for side, width in widths.items():
        block = f"synthesis.b{side}"
        shapes[f"{block}.resample_filter"] = (4, 4)
        inputs = {"conv1": width}
        if side == 4:
            shapes[f"{block}.const"] = (width, 4, 4)
        else:
            inputs = {"conv0": widths[side // 2], "conv1": width}
        for layer, count in inputs.items():
            shapes |= {
                f"{block}.{layer}.weight": (width, count, 3, 3),
                f"{block}.{layer}.noise_strength": (),
                f"{block}.{layer}.bias": (width,),
                f"{block}.{layer}.resample_filter": (4, 4),
                f"{block}.{layer}.noise_const": (side, side),
                f"{block}.{layer}.affine.weight": (count, latent),
                f"{block}.{layer}.affine.bias": (count,),
            }
        shapes |= {
            f"{block}.torgb.weight": (3, width, 1, 1),
            f"{block}.torgb.bias": (3,),
            f"{block}.torgb.affine.weight": (width, latent),
            f"{block}.torgb.affine.bias": (width,),
        }
    return shapes


def ada_discriminator_shapes(widths: dict[int, int]) -> Shapes:
    size = max(widths)
    shapes: Shapes = {
        f"b{size}.fromrgb.weight": (widths[size], 3, 1, 1),
        f"b{size}.fromrgb.bias": (widths[size],),
        f"b{size}.fromrgb.resample_filter": (4, 4),
    }
    for side in sorted(set(widths) - {4}, reverse=True):
        width, below = widths[side], widths[side // 2]
        shapes |= {
            f"b{side}.resample_filter": (4, 4),
            f"b{side}.conv0.weight": (width, width, 3, 3),
            f"b{side}.conv0.bias": (width,),
            f"b{side}.conv0.resample_filter": (4, 4),
            f"b{side}.conv1.weight": (below, width, 3, 3),
            f"b{side}.conv1.bias": (below,),
            f"b{side}.conv1.resample_filter": (4, 4),
            f"b{side}.skip.weight": (below, width, 1, 1),
            f"b{side}.skip.resample_filter": (4, 4),
        }
    last = widths[4]
    return shapes | {
        "b4.conv.weight": (last, last + 1, 3, 3),
        "b4.conv.bias": (last,),
        "b4.conv.resample_filter": (4, 4),
        "b4.fc.weight": (last, last * 16),
        "b4.fc.bias": (last,),
        "b4.out.weight": (1, last),
        "b4.out.bias": (1,),
    }


def rosinality_generator_shapes(widths: dict[int, int], latent: int, mapping_layers: int) -> Shapes:
    def modulated(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
        return {
            f"{name}.conv.weight": (1, outputs, inputs, kernel, kernel),
            f"{name}.conv.modulation.weight": (inputs, latent),
            f"{name}.conv.modulation.bias": (inputs,),
        }

    def styled(name: str, outputs: int, inputs: int) -> Shapes:
        extra = {f"{name}.noise.weight": (1,), f"{name}.activate.bias": (outputs,)}
        return modulated(name, outputs, inputs, 3) | extra

    def to_rgb(name: str, inputs: int) -> Shapes:
        return {f"{name}.bias": (1, 3, 1, 1)} | modulated(name, 3, inputs, 1)

    shapes: Shapes = {}
    for index in range(1, mapping_layers + 1):
        shapes |= {f"style.{index}.weight": (latent, latent), f"style.{index}.bias": (latent,)}
    shapes["input.input"] = (1, widths[4], 4, 4)
    shapes |= styled("conv1", widths[4], widths[4]) | to_rgb("to_rgb1", widths[4])
    for number, side in enumerate(sides_of(max(widths))[1:]):
        width, below = widths[side], widths[side // 2]
        shapes |= styled(f"convs.{2 * number}", width, below) | styled(f"convs.{2 * number + 1}", width, width)
        shapes[f"convs.{2 * number}.conv.blur.kernel"] = (4, 4)
        shapes |= to_rgb(f"to_rgbs.{number}", width)
        shapes[f"to_rgbs.{number}.upsample.kernel"] = (4, 4)
    noises = [4] + [side for side in sides_of(max(widths))[1:] for _ in range(2)]
    return shapes | {f"noises.noise_{index}": (1, 1, side, side) for index, side in enumerate(noises)}


def rosinality_discriminator_shapes(widths: dict[int, int]) -> Shapes:
    size, last = max(widths), widths[4]
    shapes: Shapes = {"convs.0.0.weight": (widths[size], 3, 1, 1), "convs.0.1.bias": (widths[size],)}
    for number, side in enumerate(sorted(set(widths) - {4}, reverse=True), start=1):
        width, below = widths[side], widths[side // 2]
        shapes |= {
            f"convs.{number}.conv1.0.weight": (width, width, 3, 3),
            f"convs.{number}.conv1.1.bias": (width,),
            f"convs.{number}.conv2.0.kernel": (4, 4),
            f"convs.{number}.conv2.1.weight": (below, width, 3, 3),
            f"convs.{number}.conv2.2.bias": (below,),
            f"convs.{number}.skip.0.kernel": (4, 4),
            f"convs.{number}.skip.1.weight": (below, width, 1, 1),
        }
    return shapes | {
        "final_conv.0.weight": (last, last + 1, 3, 3),
        "final_conv.1.bias": (last,),
        "final_linear.0.weight": (last, last * 16),
        "final_linear.0.bias": (last,),
        "final_linear.1.weight": (1, last),
        "final_linear.1.bias": (1,),
    }


def upfirdn(images: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """Zeros between pixels, zeros around, filter, every down-th pixel; the gain is up²."""
    batch, channels, height, width = images.shape
    stuffed = images.new_zeros(batch * channels, 1, height * up, width * up)
    stuffed[:, 0, ::up, ::up] = images.flatten(0, 1)
    padded = F.pad(stuffed, (before, after, before, after))
    filtered = F.conv2d(padded, KERNEL[None, None].flip(2, 3) * up**2)[:, :, ::down, ::down]
    return filtered.unflatten(0, (batch, channels)).squeeze(2)


def activated(features: Tensor, bias: Tensor) -> Tensor:
    features = features + bias.reshape(1, -1, *[1] * (features.ndim - 2))
    return torch.where(features > 0, features, 0.2 * features) * 2**0.5


def mapped(latents: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    features = latents / (latents.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for weight, bias in zip(weights, biases, strict=True):
        features = activated(features @ (weight * 0.01 / weight.shape[1] ** 0.5).T, bias * 0.01)
    return features


def modulated(features: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool = True, up: bool = False) -> Tensor:
    """Each image by its own weights; upsampling as a filter and a true convolution, in that order."""
    outputs = []
    for image, style in zip(features, styles, strict=True):
        own = weight * style[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            outputs.append(F.conv2d(upfirdn(image[None], 2, 1, 3, 2), own.flip(2, 3)))
        else:
            outputs.append(F.conv2d(image[None], own, padding=weight.shape[-1] // 2))
    return torch.cat(outputs)


def down_block(features: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Weights of the two convolutions and of the skip; biases of the two."""
    first, second, skip = (weight / (weight[0].numel() ** 0.5) for weight in weights)
    skipped = upfirdn(F.conv2d(features, skip), 1, 2, 1, 1)
    features = activated(F.conv2d(features, first, padding=1), biases[0])
    features = activated(upfirdn(F.conv2d(F.pad(features, (2, 2, 2, 2)), second), 1, 2, 0, 0), biases[1])
    return (features + skipped) / 2**0.5


def judged(features: Tensor, weights: list[Tensor], biases: list[Tensor], group: int = 4) -> Tensor:
    """The deviation in groups, then a convolution and two linear layers."""
    batch, channels, height, width = features.shape
    grouped = features.reshape(group, -1, channels, height, width)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
    features = torch.cat((features, deviation.reshape(batch, 1, 1, 1).expand(-1, 1, height, width)), 1)
    conv, hidden, out = (weight / (weight[0].numel() ** 0.5) for weight in weights)
    features = activated(F.conv2d(features, conv, padding=1), biases[0])
    return activated(features.flatten(1) @ hidden.T, biases[1]) @ out.T + biases[2]


def _doubled(state: State) -> State:
    return {key: value.double() for key, value in state.items()}


def ada_generate(state: State, latents: Tensor, mapping_layers: int, truncation: float) -> Tensor:
    """``G(z, c=None, truncation_psi=truncation, noise_mode='const')`` without fp16."""
    state = _doubled(state)
    fcs = [f"mapping.fc{index}" for index in range(mapping_layers)]
    style = mapped(latents, [state[f"{fc}.weight"] for fc in fcs], [state[f"{fc}.bias"] for fc in fcs])
    style = state["mapping.w_avg"] + truncation * (style - state["mapping.w_avg"])

    def affine(name: str) -> Tensor:
        weight = state[f"{name}.affine.weight"]
        return style @ weight.T / weight.shape[1] ** 0.5 + state[f"{name}.affine.bias"]

    features = state["synthesis.b4.const"].expand(len(latents), -1, -1, -1)
    images = None
    for side in sides_of(1024):
        if f"synthesis.b{side}.conv1.weight" not in state:
            break
        for layer in ("conv0", "conv1"):
            name = f"synthesis.b{side}.{layer}"
            if f"{name}.weight" in state:
                features = modulated(features, state[f"{name}.weight"], affine(name), up=layer == "conv0")
                features = features + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
                features = activated(features, state[f"{name}.bias"])
        name = f"synthesis.b{side}.torgb"
        weight = state[f"{name}.weight"]
        colours = modulated(features, weight, affine(name) / weight.shape[1] ** 0.5, demodulate=False)
        colours = colours + state[f"{name}.bias"][:, None, None]
        images = colours if images is None else upfirdn(images, 2, 1, 2, 1) + colours
    return images


def ada_judge(state: State, images: Tensor) -> Tensor:
    """``D(img, c=None)``."""
    state = _doubled(state)
    size = images.shape[-1]
    features = activated(F.conv2d(images, state[f"b{size}.fromrgb.weight"] / 3**0.5), state[f"b{size}.fromrgb.bias"])
    for side in sorted(set(sides_of(size)) - {4}, reverse=True):
        weights = [state[f"b{side}.{layer}.weight"] for layer in ("conv0", "conv1", "skip")]
        features = down_block(features, weights, [state[f"b{side}.conv0.bias"], state[f"b{side}.conv1.bias"]])
    names = ("b4.conv", "b4.fc", "b4.out")
    return judged(features, [state[f"{name}.weight"] for name in names], [state[f"{name}.bias"] for name in names])


def rosinality_generate(
    state: State, latents: Tensor, mapping_layers: int, truncation: float, latent_avg: Tensor
) -> Tensor:
    """``g([z], truncation=truncation, truncation_latent=latent_avg, randomize_noise=False)``."""
    state = _doubled(state)
    weights = [state[f"style.{index}.weight"] for index in range(1, mapping_layers + 1)]
    style = mapped(latents, weights, [state[f"style.{index}.bias"] for index in range(1, mapping_layers + 1)])
    style = latent_avg.double() + truncation * (style - latent_avg.double())

    def convolved(name: str, features: Tensor, *, up: bool = False, demodulate: bool = True) -> Tensor:
        weight, affine = state[f"{name}.conv.weight"][0], state[f"{name}.conv.modulation.weight"]
        styles = style @ affine.T / affine.shape[1] ** 0.5 + state[f"{name}.conv.modulation.bias"]
        return modulated(features, weight / weight[0].numel() ** 0.5, styles, up=up, demodulate=demodulate)

    def styled(name: str, features: Tensor, number: int, *, up: bool = False) -> Tensor:
        features = convolved(name, features, up=up)
        features = features + state[f"{name}.noise.weight"] * state[f"noises.noise_{number}"]
        return activated(features, state[f"{name}.activate.bias"])

    def to_rgb(name: str, features: Tensor) -> Tensor:
        return convolved(name, features, demodulate=False) + state[f"{name}.bias"]

    features = styled("conv1", state["input.input"].repeat(len(latents), 1, 1, 1), 0)
    images = to_rgb("to_rgb1", features)
    number = 0
    while f"to_rgbs.{number}.bias" in state:
        features = styled(f"convs.{2 * number}", features, 2 * number + 1, up=True)
        features = styled(f"convs.{2 * number + 1}", features, 2 * number + 2)
        images = upfirdn(images, 2, 1, 2, 1) + to_rgb(f"to_rgbs.{number}", features)
        number += 1
    return images


def rosinality_judge(state: State, images: Tensor) -> Tensor:
    """``d(img)``."""
    state = _doubled(state)
    features = activated(F.conv2d(images, state["convs.0.0.weight"] / 3**0.5), state["convs.0.1.bias"])
    number = 1
    while f"convs.{number}.skip.1.weight" in state:
        block = f"convs.{number}"
        weights = [state[f"{block}.{name}.weight"] for name in ("conv1.0", "conv2.1", "skip.1")]
        features = down_block(features, weights, [state[f"{block}.conv1.1.bias"], state[f"{block}.conv2.2.bias"]])
        number += 1
    return judged(
        features,
        [state[f"{name}.weight"] for name in ("final_conv.0", "final_linear.0", "final_linear.1")],
        [state[f"{name}.bias"] for name in ("final_conv.1", "final_linear.0", "final_linear.1")],
    )
