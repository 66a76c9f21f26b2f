"""First-block cache for transformers."""

from typing import Any

from diffusers import FirstBlockCacheConfig
from typing_extensions import override

from pocketgan.caches.transformer_cache import TransformerCache


class FirstBlockCache(TransformerCache):
    """Skips all blocks but the first while the first's residual hardly changes (ParaAttention; diffusers' hook).

    Args:
        threshold: Largest relative change of the first block's residual at which the others are skipped; 0 skips
            nothing.

    Raises:
        ValueError: The threshold is negative.
    """

    works_on_flux2 = False

    def __init__(self, threshold: float = 0.05) -> None:
        if threshold < 0:
            raise ValueError(f"threshold is {threshold}; give 0 or more")
        self.threshold = threshold

    @override
    def config(self, pipeline: Any, steps: int) -> FirstBlockCacheConfig:
        return FirstBlockCacheConfig(threshold=self.threshold)
