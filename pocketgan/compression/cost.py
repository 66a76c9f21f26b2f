"""What a network costs: parameters, operations, milliseconds."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pocketgan.compression.channel_graph import ChannelGraph, weight_by_output
from pocketgan.exporters import ExportOptions, Latency, OnnxExporter, measure_latency

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Torch counts attention on GPUs alone."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


_attention_flops._get_raw = True  # type: ignore[attr-defined]  # the counter hands tensors over, not shapes


def parameter_count(network: nn.Module) -> int:
    """All weights, whether they train or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def layer_macs(network: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Multiply-accumulate operations by layer, the whole network's under "".

    Counted by torch's flop counter, halved: convolutions, linear layers and attention; a transposed convolution at its
    input's size.

    Args:
        network: Is run once in eval mode.
        example_inputs: One batch of each input.
    """
    training = network.training
    counter = FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops})
    with counter, torch.no_grad():
        network.eval()(*example_inputs)
    network.train(training)
    root = type(network).__name__
    macs = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    return {"": macs["Global"], **{name.removeprefix(f"{root}."): count for name, count in macs.items() if "." in name}}


def group_macs(graph: ChannelGraph, example_inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Operations that the units of each group cost together, in the layers that write, steer and read them.

    Args:
        graph: Of the network.
        example_inputs: One batch of each input, of the size of use.
    """
    macs = layer_macs(graph.network, example_inputs)
    costs = {}
    for name, group in graph.groups.items():
        total = 0.0
        for member in group.members:
            if member.role != "normalises":
                sizes = weight_by_output(graph.network.get_submodule(member.layer)).shape
                total += macs.get(member.layer, 0) * len(member.places) / sizes[1 if member.role == "reads" else 0]
        costs[name] = total
    return costs


@dataclass(frozen=True)
class LatencyTarget:
    """The device and the size that milliseconds are measured for.

    Args:
        runtime: ONNX Runtime on this machine's CPU.
        threads: That it computes with.
        size: Side of the photo in pixels.
        runs: How many runs the median is of.

    Raises:
        ValueError: A number is below 1.
    """

    runtime: Literal["onnxruntime-cpu"] = "onnxruntime-cpu"
    threads: int = 2
    size: int = 256
    runs: int = 30

    def __post_init__(self) -> None:
        if min(self.threads, self.size, self.runs) < 1:
            raise ValueError(f"threads {self.threads}, size {self.size} and runs {self.runs} must be 1 or more")

    def measure(self, networks: Iterable[nn.Module], size_divisor: int) -> list[Latency]:
        """Export networks, then time one after the other.

        Args:
            networks: (B, 3, H, W) to the same.
            size_divisor: Of their photos' sides, in pixels.

        Raises:
            ImportError: ONNX Runtime or what the export needs is not installed.
            ValueError: ``size`` is not a multiple of ``size_divisor``.
        """
        exporter = OnnxExporter()
        with TemporaryDirectory() as folder:
            exported = []
            for number, network in enumerate(networks):
                file = Path(folder) / f"{number}{exporter.suffix}"
                exporter.export(network, file, {}, self.size, size_divisor, ExportOptions(dynamic_size=False))
                exported.append(exporter.load(file, self.threads))
            return [measure_latency(model, self.size, self.threads, self.runs) for model in exported]
