"""What an exported model may differ from PyTorch, and its figures: difference, task, time, memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pocketgan.exporters import ExportedModel, Pixels, Precision, compare, measure_latency

CHECK_PHOTOS = 20
# every measured figure, so that a format that does not run here has none by the same names
MEASURED = (
    "max_difference", "psnr_db", "photos", "l1_before", "l1_after", "pairs", "median_ms", "p95_ms", "peak_memory_mib",
)  # fmt: skip


class Limit(NamedTuple):
    """What the gate lets through.

    Attributes:
        max_difference: Largest absolute difference of any value, values being in [-1, 1].
        psnr_db: Least peak signal-to-noise ratio, the peak being 2.
    """

    max_difference: float
    psnr_db: float


# rounding moves single pixels at edges by a lot; their mean, and the L1 to the teacher, tell more
LIMITS: dict[Precision, Limit] = {"fp32": Limit(1e-3, 60), "fp16": Limit(0.25, 45), "int8": Limit(1.5, 28)}
# a picture of 256 levels is off by half a level, and by a whole one where rounding tips over
_LEVEL_LIMIT = Limit(1.5 / 127.5, 45)


class RunPairs(NamedTuple):
    """Of the run's pair set, at the exported size, or at the trained one where the pairs are smaller.

    Attributes:
        training: Photos (1, 3, S, S) of the training side.
        held_out: Photos and edits (1, 3, S, S) of the test or validation side.
    """

    training: list[Tensor]
    held_out: list[tuple[Tensor, Tensor]]


def l1_to_edits(network: Callable[[Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Mean absolute difference to the edits, values being in [-1, 1]."""
    with torch.inference_mode():
        return torch.stack([(network(photo) - edit).abs().mean() for photo, edit in pairs]).mean().item()


def figures_of(
    exported: ExportedModel,
    network: nn.Module,
    trained: nn.Module,
    photos: list[Tensor],
    held_out: list[tuple[Tensor, Tensor]],
    size: int,
) -> dict[str, Any]:
    """Compare an exported model with PyTorch, and time it on its own threads.

    Args:
        exported: The model.
        network: What was exported.
        trained: The network before anything was done to it for the export.
        photos: (1, 3, S, S) each.
        held_out: Pairs for the L1 to the teacher; none if there are none.
        size: Height and width at which it is timed.

    Returns:
        ``MEASURED`` but for the memory, ``size`` and ``threads``.
    """
    difference = compare(network, exported, photos)
    return {
        "max_difference": difference.max_difference,
        # infinite where all are equal, which JSON lacks
        "psnr_db": difference.psnr_db if difference.max_difference else None,
        "photos": len(photos),
        "l1_before": l1_to_edits(trained.cpu().float().eval(), held_out) if held_out else None,
        "l1_after": l1_to_edits(exported, held_out) if held_out else None,
        "pairs": len(held_out),
        **measure_latency(exported, size, exported.threads)._asdict(),
    }


def check_figures(
    figures: dict[str, Any], precision: Precision, pixels: Pixels, largest_l1_increase: float, file: Path
) -> None:
    """The gate.

    Args:
        figures: Of ``figures_of``; where nothing was measured, nothing is refused.
        precision: Of the model.
        pixels: Likewise.
        largest_l1_increase: Share by which the L1 to the teacher's edits may rise.
        file: The model, for the message.

    Raises:
        ValueError: A figure is beyond its limit.
    """
    if figures["max_difference"] is None:
        return
    limit = LIMITS[precision]
    if pixels == "uint8":
        limit = Limit(max(limit.max_difference, _LEVEL_LIMIT.max_difference), min(limit.psnr_db, _LEVEL_LIMIT.psnr_db))
    psnr = float("inf") if figures["psnr_db"] is None else figures["psnr_db"]
    # not-a-number is beyond every limit
    if not (figures["max_difference"] <= limit.max_difference and psnr >= limit.psnr_db):
        remedy = ""
        if precision == "int8":
            remedy = ". Use --precision fp16; networks trained with --model.generator.norm BatchNorm lose less in int8"
        raise ValueError(
            f"the exported model {file.name} differs from PyTorch by {figures['max_difference']:.1e} on real photos "
            f"({psnr:.1f} dB), where {precision} may by {limit.max_difference:.1e} ({limit.psnr_db:.0f} dB); it was "
            f"not kept{remedy}"
        )
    before, after = figures["l1_before"], figures["l1_after"]
    if before is not None and not after <= before * (1 + largest_l1_increase):
        remedy = "Allow more with --largest_l1_increase"
        if precision == "int8" and "fine_tuned" not in figures:
            remedy = "Try --fine_tune_images 400, or allow more with --largest_l1_increase"
        raise ValueError(
            f"the exported model {file.name} is {after / before - 1:.1%} worse than PyTorch in its L1 to the teacher's "
            f"edits ({before:.4f} to {after:.4f} on {figures['pairs']} unseen pairs), where {largest_l1_increase:.1%} "
            f"is allowed; it was not kept. {remedy}"
        )
