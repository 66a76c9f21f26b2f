"""Is an exported model the network that it was made of, and how fast is it?"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketgan.exporters.exporter import ExportedModel


class ExportDifference(NamedTuple):
    """How far an exported model's edits are from PyTorch's, values being in [-1, 1].

    Attributes:
        max_difference: Largest absolute difference of any value.
        psnr_db: Peak signal-to-noise ratio over all values, the peak being 2; infinite if all are equal.
    """

    max_difference: float
    psnr_db: float


class Latency(NamedTuple):
    """What one photo takes.

    Attributes:
        median_ms: Median over the runs.
        p95_ms: 95th percentile.
        threads: Threads computed with.
        size: Height and width of the photo in pixels.
    """

    median_ms: float
    p95_ms: float
    threads: int
    size: int


def compare(network: nn.Module, exported: ExportedModel, photos: Sequence[Tensor]) -> ExportDifference:
    """Run photos through a network and its export.

    Args:
        network: What was exported. It is left as it is: a float32 copy in eval mode runs.
        exported: What came of it.
        photos: Batches (B, 3, H, W) in [-1, 1], each of any size that both accept.

    Raises:
        ValueError: No photos were given.
    """
    if not photos:
        raise ValueError("no photos to compare on; give at least one")
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.inference_mode():
        differences = torch.cat([(network(batch.cpu()) - exported(batch)).flatten() for batch in photos])
    mean_square = differences.double().square().mean()
    return ExportDifference(differences.abs().max().item(), (10 * torch.log10(4 / mean_square)).item())


def measure_latency(
    model: Callable[[Tensor], Tensor], size: int, threads: int, runs: int = 30, warmup: int = 5
) -> Latency:
    """Time a model on one square photo, on the CPU.

    Args:
        model: An exported model, or a network in eval mode.
        size: Height and width in pixels.
        threads: A network computes with this many; an exported model must have been loaded for as many. It is timed
            on pictures of its own kind, without their conversion.
        runs: How many times to measure.
        warmup: How many runs go before, unmeasured.

    Raises:
        ValueError: The exported model computes with another number of threads.
    """
    if isinstance(model, ExportedModel) and model.threads != threads:
        raise ValueError(f"the model was loaded for {model.threads} threads; load it with threads={threads}")
    # a generator of its own: measuring during a training must not move the training's random numbers
    photo = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    milliseconds = []
    threads_before = torch.get_num_threads()
    if isinstance(model, ExportedModel):
        photo, model = model.pictures(photo), model.run
        torch.set_num_threads(1)  # those of PyTorch would wait in the way of the runtime's
    else:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(warmup + runs):
                start = time.perf_counter()
                model(photo)
                milliseconds.append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads_before)
    measured = torch.tensor(milliseconds[warmup:], dtype=torch.float64)
    return Latency(measured.quantile(0.5).item(), measured.quantile(0.95).item(), threads, size)
