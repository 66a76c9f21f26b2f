"""Sources of batches, one file each."""

from datamodules.concept_images import ConceptImages
from datamodules.labelled_latents import LabelledLatents
from datamodules.pair_batches import PairBatches
from datamodules.paired_images import PairedImages
from datamodules.source_photos import SourcePhotos
from datamodules.streamed_pairs import StreamedPairs
from datamodules.unpaired_images import UnpairedImages

__all__ = [
    "ConceptImages",
    "LabelledLatents",
    "PairBatches",
    "PairedImages",
    "SourcePhotos",
    "StreamedPairs",
    "UnpairedImages",
]
