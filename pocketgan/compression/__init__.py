"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.channel_graph import ChannelGraph, ChannelGroup, Kept
from pocketgan.compression.cost import LatencyTarget, layer_macs, macs_per_unit, parameter_count
from pocketgan.compression.effective_scale import ConcentrationLoss, effective_scales, make_norms_affine
from pocketgan.compression.folding import pruned_with_constants
from pocketgan.compression.kept_share import KeptShare
from pocketgan.compression.latency_budget import LatencyBudget
from pocketgan.compression.pruning_rule import PruningRule
from pocketgan.compression.public_discriminator import (
    PublicBigGANDiscriminator,
    PublicDiscriminator,
    PublicRosinalityDiscriminator,
    PublicStyleGAN2AdaDiscriminator,
)
from pocketgan.compression.quality_budget import QualityBudget
from pocketgan.compression.teacher_discriminator import TeacherDiscriminator

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "ConcentrationLoss",
    "Kept",
    "KeptShare",
    "LatencyBudget",
    "LatencyTarget",
    "PruningRule",
    "PublicBigGANDiscriminator",
    "PublicDiscriminator",
    "PublicRosinalityDiscriminator",
    "PublicStyleGAN2AdaDiscriminator",
    "QualityBudget",
    "TeacherDiscriminator",
    "effective_scales",
    "layer_macs",
    "macs_per_unit",
    "make_norms_affine",
    "parameter_count",
    "pruned_with_constants",
]
