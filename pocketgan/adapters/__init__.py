"""What adapts a base to one concept."""

from pocketgan.adapters.lora import (
    add_lora,
    keep_ranks,
    layer_ranks,
    load_adapter,
    merge,
    ranks_of,
    read_ranks,
    read_tokens,
    resized,
    save_adapter,
    scaled_ranks,
    stored_bytes,
)
from pocketgan.adapters.switchable_generator import SwitchableGenerator

__all__ = [
    "SwitchableGenerator",
    "add_lora",
    "keep_ranks",
    "layer_ranks",
    "load_adapter",
    "merge",
    "ranks_of",
    "read_ranks",
    "read_tokens",
    "resized",
    "save_adapter",
    "scaled_ranks",
    "stored_bytes",
]
