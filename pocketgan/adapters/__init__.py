"""What adapts a base to one concept."""

from pocketgan.adapters.lora import add_lora, layer_ranks, load_adapter, merge, save_adapter

__all__ = ["add_lora", "layer_ranks", "load_adapter", "merge", "save_adapter"]
