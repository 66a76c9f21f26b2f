"""What adapts a base to one concept."""

from pocketgan.adapters.all_weights import AllWeights
from pocketgan.adapters.bit_fit import BitFit
from pocketgan.adapters.class_table import null_label, prepare_classes
from pocketgan.adapters.diff_fit import DiffFit
from pocketgan.adapters.diffusion_adapter import (
    DiffusionAdapter,
    adapter_bytes,
    load_diffusion_adapter,
    load_trained,
    merge_diffusion_adapter,
    save_diffusion_adapter,
    trained_parameters,
)
from pocketgan.adapters.diffusion_lora import DiffusionLoRA
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
from pocketgan.adapters.switchable_generator import ConceptChanges, SwitchableGenerator

__all__ = [
    "AllWeights",
    "BitFit",
    "ConceptChanges",
    "DiffFit",
    "DiffusionAdapter",
    "DiffusionLoRA",
    "SwitchableGenerator",
    "adapter_bytes",
    "add_lora",
    "keep_ranks",
    "layer_ranks",
    "load_adapter",
    "load_diffusion_adapter",
    "load_trained",
    "merge",
    "merge_diffusion_adapter",
    "null_label",
    "prepare_classes",
    "ranks_of",
    "read_ranks",
    "read_tokens",
    "resized",
    "save_adapter",
    "save_diffusion_adapter",
    "scaled_ranks",
    "stored_bytes",
    "trained_parameters",
]
