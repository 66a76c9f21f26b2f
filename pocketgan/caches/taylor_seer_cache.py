"""TaylorSeer for transformers."""

from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig
from typing_extensions import override

from pocketgan.caches.transformer_cache import TransformerCache


class TaylorSeerCache(TransformerCache):
    """Extrapolates attention outputs by their Taylor series between whole steps (Liu et al., arXiv 2503.06923).

    Args:
        interval: Steps from one whole pass to the next; 1 caches nothing and changes no bit.
        first_steps: Steps at the beginning that are always whole.
        order: Of the series; 0 repeats the last whole step.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, interval: int = 3, first_steps: int = 3, order: int = 1) -> None:
        if interval < 1 or first_steps < 1 or order < 0:
            raise ValueError(
                f"interval, first_steps and order are {interval}, {first_steps} and {order}; give at least 1, 1 and 0"
            )
        self.interval, self.first_steps, self.order = interval, first_steps, order

    @override
    def config(self, pipeline: Any, steps: int) -> TaylorSeerCacheConfig:
        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.first_steps,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
        )
