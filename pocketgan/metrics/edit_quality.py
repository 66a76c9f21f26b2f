"""How close a GAN's edits are to its teacher's."""

import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric, SumMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.utilities import rank_zero_warn

from pocketgan.files import write_whole
from pocketgan.metrics.feature_extractor import FeatureExtractor
from pocketgan.metrics.frozen_module import FrozenModule
from pocketgan.metrics.gathered_features import GatheredFeatures, set_distances

_ALEXNET_FILE_NAME = "alexnet-owt-7be5be79.pth"


class EditQuality(FrozenModule):
    """How close a GAN's edits are to its teacher's: paired metrics, and distances between the sets.

    In a distributed run every rank updates with its own images, and ``compute`` is called on every rank: it
    synchronises, and returns the same values everywhere.

    The distances are computed per concept and averaged over the concepts, as in E2GAN's tables (Gong et al.
    2024, arXiv:2401.06127): over all concepts at once, a GAN that mixes up two concepts would score well.

    The kernel distance comes with a 95 % bootstrap interval over images: the mean of the concepts' bounds. That
    is the interval of the mean if all concepts err alike, which concepts on the same photos nearly do, and too
    wide otherwise.

    Args:
        feature_extractor: Network for the distances, which bear its two names. None: paired metrics alone.
        lpips: Whether to compute LPIPS (Zhang et al. 2018, arXiv:1801.03924, AlexNet). None: if torchvision's
            AlexNet weights are on this machine. They are never downloaded.

    Raises:
        FileNotFoundError: If ``lpips`` is True and AlexNet's weights are not there.
    """

    def __init__(self, feature_extractor: FeatureExtractor | None = None, lpips: bool | None = None) -> None:
        super().__init__()
        self.measured_images = SumMetric()
        # a NaN shall be seen in the result, not be skipped as by default
        self.reconstruction = MeanMetric(nan_strategy="disable")
        self.psnr = PeakSignalNoiseRatio(data_range=2.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.lpips = MeanMetric(nan_strategy="disable")
        self.lpips_network = _lpips_network(lpips)
        self.feature_extractor = feature_extractor
        self.concept_features = GatheredFeatures(feature_extractor.feature_size if feature_extractor else 0)
        self.reference: dict[str, Tensor] = {}
        self._has_warned = False
        self.eval()

    def set_reference(self, features: dict[str, Tensor]) -> None:
        """Set what the distances are measured from; images seen so far are forgotten.

        Args:
            features: Concept to (N, D) features of the teacher's edits, from :func:`reference_features`.

        Raises:
            ValueError: If there is no feature extractor, no concept, or D is not the extractor's.
        """
        if self.feature_extractor is None:
            raise ValueError("a reference needs a feature extractor: give EditQuality a `feature_extractor`")
        if not features:
            raise ValueError("the reference holds no concept; give the features of at least one")
        _check_features(features, self.feature_extractor)
        # sorted, so that a concept has the same number on every rank
        self.reference = {concept: features[concept].cpu() for concept in sorted(features)}
        self.reset()

    @property
    def concepts(self) -> list[str]:
        """The reference's concepts, sorted."""
        return list(self.reference)

    @torch.no_grad()
    def update(self, fake: Tensor, edit: Tensor, concepts: list[str]) -> None:
        """Take in a batch.

        Args:
            fake: The GAN's edits, (B, 3, H, W); clamped to [-1, 1], as writing a picture does.
            edit: The teacher's edits of the same photos, (B, 3, H, W) in [-1, 1].
            concepts: B concepts, one per image.

        Raises:
            ValueError: If the shapes or the number of concepts differ, or a concept is not in the reference.
            RuntimeError: If there is a feature extractor and no reference.
        """
        if fake.shape != edit.shape or fake.ndim != 4 or len(fake) != len(concepts):
            raise ValueError(
                f"fake is {tuple(fake.shape)}, edit is {tuple(edit.shape)}, with {len(concepts)} concepts; "
                "give two (B, 3, H, W) of one shape and B concepts"
            )
        # in a bf16-mixed run autocast would ruin SSIM, which subtracts nearly equal moments
        with torch.autocast(fake.device.type, enabled=False):
            fake, edit = fake.float().clamp(-1, 1), edit.float().clamp(-1, 1)
            if self.feature_extractor is not None:
                concept_numbers = self._concept_numbers(concepts).to(fake.device)
                self.concept_features.update(self.feature_extractor(fake), concept_numbers)
            self.measured_images.update(len(fake))
            # one value per image: sums of single pixels would outgrow float32
            self.reconstruction.update((fake - edit).abs().mean(dim=(1, 2, 3)))
            self.psnr.update(fake, edit)
            # SSIM's luminance term is made for values from 0: on [-1, 1] its values are not the literature's
            self.ssim.update((fake + 1) / 2, (edit + 1) / 2)
            if self.lpips_network is not None:
                self.lpips.update(self.lpips_network(fake, edit).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Compute the metrics over all images of all ranks.

        Returns:
            Float32 scalars. ``measured_images``: the N of the paired metrics. ``reconstruction``: L1 between images
            in [-1, 1]. ``psnr``: dB, from the squared error over all images. ``ssim``. ``lpips``, if it is on. With a
            feature extractor: ``images_per_concept``, the N of the concept with the fewest images; under the
            extractor's names, the Fréchet and the kernel distance, averaged over concepts; and under the latter's name
            with ``_low`` and ``_high`` the bounds of its interval. The distances are left out, with one warning, when
            N < 2, the bounds when N < 3.
        """
        metrics: dict[str, Metric] = {
            "measured_images": self.measured_images,
            "reconstruction": self.reconstruction,
            "psnr": self.psnr,
            "ssim": self.ssim,
        }
        if self.lpips_network is not None:
            metrics["lpips"] = self.lpips
        values = {name: metric.compute() for name, metric in metrics.items()}
        if self.feature_extractor is not None:
            values |= self._distances(self.feature_extractor)
        device = values["reconstruction"].device
        return {name: value.to(device, torch.float32) for name, value in values.items()}

    def reset(self) -> None:
        """Forget the images seen so far; the reference stays."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()

    def _concept_numbers(self, concepts: list[str]) -> Tensor:
        if not self.reference:
            raise RuntimeError("EditQuality has no reference for its distances; call set_reference first")
        if unknown := sorted(set(concepts) - set(self.reference)):
            raise ValueError(
                f"concepts {unknown} are not in the reference, which holds {self.concepts}; "
                "make the reference from the same pair set"
            )
        return torch.tensor([self.concepts.index(concept) for concept in concepts])

    def _distances(self, extractor: FeatureExtractor) -> dict[str, Tensor]:
        features, numbers = self.concept_features.gathered()
        pairs = [(features[numbers == number], self.reference[name]) for number, name in enumerate(self.concepts)]
        image_counts = [min(len(fake), len(reference)) for fake, reference in pairs]
        images_per_concept = min(image_counts, default=0)
        values = {"images_per_concept": torch.tensor(images_per_concept), **set_distances(extractor, pairs)}
        if images_per_concept < 2 and not self._has_warned:
            self._has_warned = True
            fewest = self.concepts[image_counts.index(images_per_concept)] if pairs else "(no reference)"
            rank_zero_warn(
                f"{extractor.frechet_name} and {extractor.kernel_name} are left out: concept {fewest} has "
                f"{images_per_concept} images and a distance needs 2; evaluate on more photos per concept"
            )
        return values


def reference_features(
    extractor: FeatureExtractor, batches: Iterable[tuple[Tensor, list[str]]], cache: Path | None
) -> dict[str, Tensor]:
    """Compute the features of the teacher's edits, or read them back.

    Every rank of a distributed run needs all of them, not its share. Ranks that start at once may share the
    cache: each writes a file of its own and moves it into place whole.

    Args:
        extractor: The network; the images are moved to its device.
        batches: Pairs of edits (B, 3, H, W) in [-1, 1] and their B concepts. Not iterated when the cache is
            used, so give a loader or a generator.
        cache: A safetensors file to read, or to write if it is not there. Its name must tell apart whatever
            changes the features: the pair set's hash, the split, the size and the extractor's
            ``frechet_name``. None: no cache.

    Returns:
        Concept to (N, D) float32 on the CPU, sorted by concept.

    Raises:
        ValueError: If the batches hold no edit.
    """
    if cache is not None and cache.exists():
        try:
            features = load_file(cache)
            _check_features(features, extractor)
        except (SafetensorError, ValueError) as error:
            warnings.warn(f"{cache} cannot be used and is computed again: {error}", stacklevel=2)
        else:
            return dict(sorted(features.items()))
    rows: defaultdict[str, list[Tensor]] = defaultdict(list)
    for edits, concepts in batches:
        device = next(extractor.parameters(), edits).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            batch_features = extractor(edits.to(device)).float().cpu()
        for concept, row in zip(concepts, batch_features, strict=True):
            rows[concept].append(row)
    if not rows:
        raise ValueError("there are no edits to make the reference from; give batches with at least one")
    features = {concept: torch.stack(rows[concept]) for concept in sorted(rows)}
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, save(features))
    return features


def _check_features(features: dict[str, Tensor], extractor: FeatureExtractor) -> None:
    for concept, value in features.items():
        if value.ndim != 2 or value.shape[1] != extractor.feature_size:
            raise ValueError(
                f"the features of concept {concept} are {tuple(value.shape)}, those of "
                f"{type(extractor).__name__} are (N, {extractor.feature_size}); compute them with the latter"
            )


def _lpips_network(lpips: bool | None) -> nn.Module | None:
    """The network that maps two (B, 3, H, W) in [-1, 1] to LPIPS (B, 1, 1, 1), or None if it is not used.

    Torchmetrics' network without its metric class: that one gathers its list of scores batch by batch, which
    hangs where ranks have unequal numbers of batches.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET_FILE_NAME
    if lpips is False or (lpips is None and not file.is_file()):
        return None
    if not file.is_file():
        raise FileNotFoundError(
            f"LPIPS needs torchvision's AlexNet weights; looked for {file}. Get "
            f"https://download.pytorch.org/models/{_ALEXNET_FILE_NAME}, put it there, or set `lpips: false`"
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex").net
