"""How good edits are: distances, feature networks, and the metrics that validation and test report."""

from pocketgan.metrics.distance import frechet_distance, kernel_distance, kernel_distance_interval
from pocketgan.metrics.edit_quality import EditQuality, reference_features
from pocketgan.metrics.efficientnet_lite0_features import EfficientNetLite0Features
from pocketgan.metrics.feature_extractor import FeatureExtractor
from pocketgan.metrics.frozen_module import FrozenModule
from pocketgan.metrics.image_set_quality import ImageSetQuality
from pocketgan.metrics.inception_features import InceptionFeatures

__all__ = [
    "EditQuality",
    "EfficientNetLite0Features",
    "FeatureExtractor",
    "FrozenModule",
    "ImageSetQuality",
    "InceptionFeatures",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_interval",
    "reference_features",
]
