"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.cubic_sparsity import CubicSparsity
from pocketgan.compression.global_magnitude import clear_momentum, global_magnitude_masks, kept_count
from pocketgan.compression.n_to_m_mask import NToMMask, NToMStage, is_n_to_m, n_to_m_mask
from pocketgan.compression.semi_structured import with_semi_structured_weights
from pocketgan.compression.sparse_layers import (
    ChosenLayers,
    WeightLayer,
    add_masks,
    bake_masks,
    choose_layers,
    find_masks,
    is_mask,
    masked_share,
    plain_tensors,
    restore_masks,
    sparsity_of,
    take_off_masks,
    weight_layers,
)
from pocketgan.compression.weight_mask import FixedMask, WeightMask

__all__ = [
    "ChosenLayers",
    "CubicSparsity",
    "FixedMask",
    "NToMMask",
    "NToMStage",
    "WeightLayer",
    "WeightMask",
    "add_masks",
    "bake_masks",
    "choose_layers",
    "clear_momentum",
    "find_masks",
    "global_magnitude_masks",
    "is_mask",
    "is_n_to_m",
    "kept_count",
    "masked_share",
    "n_to_m_mask",
    "plain_tensors",
    "restore_masks",
    "sparsity_of",
    "take_off_masks",
    "weight_layers",
    "with_semi_structured_weights",
]
