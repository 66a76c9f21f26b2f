"""BitFit: biases alone."""

from typing import Any

from torch import nn

from pocketgan.adapters.diffusion_adapter import DiffusionAdapter, biases, class_weights, freeze


class BitFit(DiffusionAdapter):
    """BitFit (Ben Zaken et al., arXiv 2106.10199) as DiffFit compares itself with it: biases and the class table.

    0.60 M of DiT-XL/2 with 101 classes; the time embedding's biases are frozen as in DiffFit.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """No arguments."""
        return {}

    def add(self, transformer: nn.Module) -> None:
        """Mark what trains; see ``DiffusionAdapter.add``."""
        freeze(transformer)
        for parameter in (*biases(transformer), *class_weights(transformer)):
            parameter.requires_grad_(True)
