"""Sources of batches, one file each."""

from datamodules.paired_images import PairedImages
from datamodules.source_photos import SourcePhotos

__all__ = ["PairedImages", "SourcePhotos"]
