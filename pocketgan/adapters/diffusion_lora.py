"""Low-rank deltas on a diffusion transformer."""

import re
from typing import Any, Literal

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from pocketgan.adapters.diffusion_adapter import DiffusionAdapter, class_weights, freeze

AdaptedLayer = Literal["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]


class DiffusionLoRA(DiffusionAdapter):
    """LoRA by PEFT in every block, and the class table; scale 1 (alpha = rank).

    DiffFit's baselines have ranks 8 and 16; that they are on query and value is inferred from their parameter counts
    (1.15 and 2.18 M on DiT-XL/2 with 101 classes).

    Args:
        rank: Of each delta.
        targets: Layers of a block that get one.

    Raises:
        ValueError: The rank is below 1, or no layer is named.
    """

    decays = True

    def __init__(self, rank: int = 8, targets: tuple[AdaptedLayer, ...] = ("attn1.to_q", "attn1.to_v")) -> None:
        if rank < 1 or not targets:
            raise ValueError(f"rank is {rank}, targets {list(targets)}; give a rank from 1 and one layer or more")
        self.rank, self.targets = rank, tuple(targets)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor as plain JSON values."""
        return {"rank": self.rank, "targets": list(self.targets)}

    def add(self, transformer: nn.Module) -> None:
        """Add deltas with B = 0 and mark what trains; see ``DiffusionAdapter.add``."""
        freeze(transformer)
        layers = "|".join(map(re.escape, self.targets))
        pattern = rf"transformer_blocks\.\d+\.({layers})"
        inject_adapter_in_model(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=pattern), transformer)
        for parameter in class_weights(transformer):
            parameter.requires_grad_(True)
