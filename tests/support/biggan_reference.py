"""BigGAN-PyTorch's networks in eval mode as plain formulas on a state dict with its names.

Written from its public layout, apart from the package's networks: it makes state dicts to load and says what they mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

# by size: channels into and out of each block of the generator; out of each block of the discriminator, how many halve
GENERATOR = {
    32: ([4, 4, 4], [4, 4, 4]),
    64: ([16, 16, 8, 4], [16, 8, 4, 2]),
    128: ([16, 16, 8, 4, 2], [16, 8, 4, 2, 1]),
    256: ([16, 16, 8, 8, 4, 2], [16, 8, 8, 4, 2, 1]),
}
DISCRIMINATOR = {
    32: ([4, 4, 4, 4], 2),
    64: ([1, 2, 4, 8, 16], 4),
    128: ([1, 2, 4, 8, 16, 16], 5),
    256: ([1, 2, 4, 8, 8, 16, 16], 6),
}


class StateMaker:
    """Draws a state dict; spectral vectors are far from converged, so that a wrong conversion shows."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int) -> None:
        self.state[name] = torch.randn(shape, generator=self.random)

    def spectral(self, name: str, *shape: int, bias: bool = True) -> None:
        self.draw(f"{name}.weight", *shape)
        if bias:
            self.draw(f"{name}.bias", shape[0])
        self.draw(f"{name}.u0", 1, shape[0])
        self.draw(f"{name}.sv0", 1)

    def statistics(self, name: str, channels: int) -> None:
        self.draw(f"{name}.stored_mean", channels)
        self.state[f"{name}.stored_var"] = torch.rand(channels, generator=self.random) + 0.5

    def convolutions(self, block: str, inputs: int, outputs: int, *, shortcut: bool) -> None:
        self.spectral(f"{block}.conv1", outputs, inputs, 3, 3)
        self.spectral(f"{block}.conv2", outputs, outputs, 3, 3)
        if shortcut:
            self.spectral(f"{block}.conv_sc", outputs, inputs, 1, 1)

    def attention(self, block: str, channels: int) -> None:
        self.draw(f"{block}.gamma")
        for name, rows, columns in (
            ("theta", channels // 8, channels),
            ("phi", channels // 8, channels),
            ("g", channels // 2, channels),
            ("o", channels, channels // 2),
        ):
            self.spectral(f"{block}.{name}", rows, columns, 1, 1, bias=False)


def generator_state(
    size: int, width: int, classes: int, latent_size: int, shared_size: int, attention: tuple[int, ...]
) -> State:
    """A state dict as ``Generator(--hier --G_shared)`` would save it."""
    maker = StateMaker()
    inputs, outputs = ([width * each for each in row] for row in GENERATOR[size])
    chunk = latent_size // (len(inputs) + 1)
    maker.draw("shared.weight", classes, shared_size)
    maker.spectral("linear", inputs[0] * 16, chunk)
    for index, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
        block = f"blocks.{index}.0"
        maker.convolutions(block, before, after, shortcut=True)
        for norm, channels in (("bn1", before), ("bn2", after)):
            for part in ("gain", "bias"):
                maker.spectral(f"{block}.{norm}.{part}", channels, shared_size + chunk, bias=False)
            maker.statistics(f"{block}.{norm}", channels)
        if 8 * 2**index in attention:
            maker.attention(f"blocks.{index}.1", after)
    maker.draw("output_layer.0.gain", outputs[-1])
    maker.draw("output_layer.0.bias", outputs[-1])
    maker.statistics("output_layer.0", outputs[-1])
    maker.spectral("output_layer.2", 3, outputs[-1], 3, 3)
    return maker.state


def discriminator_state(size: int, width: int, classes: int, attention: tuple[int, ...]) -> State:
    """A state dict as ``Discriminator`` would save it; ``attention`` holds indices of blocks."""
    maker = StateMaker()
    multipliers, halving = DISCRIMINATOR[size]
    before = 3
    for index, multiplier in enumerate(multipliers):
        after = width * multiplier
        maker.convolutions(f"blocks.{index}.0", before, after, shortcut=index < halving or before != after)
        if index in attention:
            maker.attention(f"blocks.{index}.1", after)
        before = after
    maker.spectral("linear", 1, before)
    maker.spectral("embed", classes, before, bias=False)
    return maker.state


def weight(state: State, name: str) -> Tensor:
    """W over the singular value that one more step of power iteration from u finds."""
    matrix = state[f"{name}.weight"].flatten(1)
    v = state[f"{name}.u0"] @ matrix
    v = v / v.norm()
    u = v @ matrix.T
    u = u / u.norm()
    return state[f"{name}.weight"] / (v @ matrix.T @ u.T)


def convolve(state: State, name: str, x: Tensor) -> Tensor:
    kernel = weight(state, name)
    return F.conv2d(x, kernel, state.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)


def normalise(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = (state[f"{name}.{part}"][:, None, None] for part in ("stored_mean", "stored_var"))
    return (x - mean) / (variance + 1e-5).sqrt()


def conditional_norm(state: State, name: str, x: Tensor, y: Tensor) -> Tensor:
    gain, bias = ((y @ weight(state, f"{name}.{part}").T)[:, :, None, None] for part in ("gain", "bias"))
    return normalise(state, name, x) * (1 + gain) + bias


def attend(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.gamma" not in state:
        return x
    batch, _, height, width = x.shape
    theta = convolve(state, f"{name}.theta", x)
    phi, g = (F.max_pool2d(convolve(state, f"{name}.{part}", x), 2) for part in ("phi", "g"))
    result = torch.zeros(batch, g.shape[1], height * width)
    for each in range(batch):  # one image at a time, one matrix at a time
        beta = torch.softmax(theta[each].flatten(1).T @ phi[each].flatten(1), dim=1)
        result[each] = g[each].flatten(1) @ beta.T
    return x + state[f"{name}.gamma"] * convolve(state, f"{name}.o", result.view(batch, -1, height, width))


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def generate(state: State, z: Tensor, labels: Tensor) -> Tensor:
    """What the generator puts out in eval mode."""
    y = state["shared.weight"][labels]
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    chunks = z.chunk(blocks + 1, dim=1)
    h = (chunks[0] @ weight(state, "linear").T + state["linear.bias"]).view(len(z), -1, 4, 4)
    for index in range(blocks):
        block, condition = f"blocks.{index}.0", torch.cat([y, chunks[index + 1]], 1)
        x = double(conditional_norm(state, f"{block}.bn1", h, condition).relu())
        x = conditional_norm(state, f"{block}.bn2", convolve(state, f"{block}.conv1", x), condition).relu()
        h = convolve(state, f"{block}.conv2", x) + convolve(state, f"{block}.conv_sc", double(h))
        h = attend(state, f"blocks.{index}.1", h)
    gain, bias = (state[f"output_layer.0.{part}"][:, None, None] for part in ("gain", "bias"))
    h = (normalise(state, "output_layer.0", h) * gain + bias).relu()
    return convolve(state, "output_layer.2", h).tanh()


def judge(state: State, size: int, x: Tensor, labels: Tensor) -> Tensor:
    """What the discriminator puts out in eval mode."""
    multipliers, halving = DISCRIMINATOR[size]
    h = x
    for index in range(len(multipliers)):
        block = f"blocks.{index}.0"
        body = convolve(state, f"{block}.conv1", h if index == 0 else h.relu())
        body = convolve(state, f"{block}.conv2", body.relu())
        side = F.avg_pool2d(h, 2) if index == 0 else h  # the first block pools before its convolution
        if f"{block}.conv_sc.weight" in state:
            side = convolve(state, f"{block}.conv_sc", side)
        if index < halving:
            body = F.avg_pool2d(body, 2)
            side = side if index == 0 else F.avg_pool2d(side, 2)
        h = attend(state, f"blocks.{index}.1", body + side)
    h = h.relu().sum((2, 3))
    projection = (weight(state, "embed")[labels] * h).sum(1, keepdim=True)
    return h @ weight(state, "linear").T + state["linear.bias"] + projection
