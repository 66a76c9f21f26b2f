"""Class labels: what networks with classes accept."""

import torch
from torch import Tensor


def check_labels(labels: Tensor | None, classes: int, images: int) -> Tensor:
    """Refuse labels that a network with classes cannot take.

    Their values are looked at only where they lie on the CPU and nothing is being compiled or exported: reading them
    from an accelerator would stall it in every step, and its own embedding lookup stops at a label out of range.

    Args:
        labels: (B,) whole numbers in [0, ``classes``).
        classes: Number of classes, at least 1.
        images: B.

    Returns:
        The labels.

    Raises:
        TypeError: The labels are not whole numbers.
        ValueError: There are none, not one for each image, or one is out of range.
    """
    if labels is None:
        raise ValueError(f"no labels were given to a network of {classes} classes; give one label for each image")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; give whole numbers (torch.long) from 0 to {classes - 1}")
    if labels.shape != (images,):
        raise ValueError(f"labels have the shape {tuple(labels.shape)} beside {images} images; give ({images},)")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"label {wrong} is out of range for {classes} classes; give labels from 0 to {classes - 1}, or make "
                f"the network with more classes"
            )
    return labels
