"""Full fine-tuning."""

from typing import Any

from torch import nn

from pocketgan.adapters.diffusion_adapter import DiffusionAdapter, freeze


class AllWeights(DiffusionAdapter):
    """Every weight trains, the yardstick of the others; on a new transformer it is training from scratch."""

    decays = True

    @property
    def settings(self) -> dict[str, Any]:
        """No arguments."""
        return {}

    def add(self, transformer: nn.Module) -> None:
        """Mark every weight; see ``DiffusionAdapter.add``."""
        freeze(transformer)
        transformer.requires_grad_(True)
