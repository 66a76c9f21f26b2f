"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.batch_norm_statistics import recalibrate_batch_norm
from pocketgan.compression.captured_outputs import captured_outputs
from pocketgan.compression.channel_graph import ChannelGraph, ChannelGroup, Kept
from pocketgan.compression.cost import LatencyTarget, group_macs, layer_macs, parameter_count
from pocketgan.compression.cubic_sparsity import CubicSparsity
from pocketgan.compression.effective_scale import ConcentrationLoss, effective_scales, make_norms_affine
from pocketgan.compression.folding import pruned_with_constants
from pocketgan.compression.generator_cost import GeneratorCost, widths
from pocketgan.compression.global_magnitude import clear_momentum, global_magnitude_masks, kept_count
from pocketgan.compression.kept_share import KeptShare
from pocketgan.compression.latency_budget import LatencyBudget
from pocketgan.compression.n_to_m_mask import NToMMask, NToMStage, is_n_to_m, n_to_m_mask
from pocketgan.compression.pruning_rule import PruningRule
from pocketgan.compression.public_discriminator import (
    PublicBigGANDiscriminator,
    PublicDiscriminator,
    PublicRosinalityDiscriminator,
    PublicStyleGAN2AdaDiscriminator,
)
from pocketgan.compression.quality_budget import QualityBudget
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
from pocketgan.compression.teacher_discriminator import TeacherDiscriminator
from pocketgan.compression.weight_mask import FixedMask, WeightMask

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "ChosenLayers",
    "ConcentrationLoss",
    "CubicSparsity",
    "FixedMask",
    "GeneratorCost",
    "Kept",
    "KeptShare",
    "LatencyBudget",
    "LatencyTarget",
    "NToMMask",
    "NToMStage",
    "PruningRule",
    "PublicBigGANDiscriminator",
    "PublicDiscriminator",
    "PublicRosinalityDiscriminator",
    "PublicStyleGAN2AdaDiscriminator",
    "QualityBudget",
    "TeacherDiscriminator",
    "WeightLayer",
    "WeightMask",
    "add_masks",
    "bake_masks",
    "captured_outputs",
    "choose_layers",
    "clear_momentum",
    "effective_scales",
    "find_masks",
    "global_magnitude_masks",
    "group_macs",
    "is_mask",
    "is_n_to_m",
    "kept_count",
    "layer_macs",
    "make_norms_affine",
    "masked_share",
    "n_to_m_mask",
    "parameter_count",
    "plain_tensors",
    "pruned_with_constants",
    "recalibrate_batch_norm",
    "restore_masks",
    "sparsity_of",
    "take_off_masks",
    "weight_layers",
    "widths",
    "with_semi_structured_weights",
]
