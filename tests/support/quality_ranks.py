"""Metrics on several processes: in a module of its own, so that a spawned process can import it."""

import torch

from pocketgan.metrics import EditQuality, FeatureExtractor, reference_features


class TinyFeatures(FeatureExtractor):
    """Four fixed features of an image, quick and without weights."""

    frechet_name = "fd_tiny"
    kernel_name = "kid_tiny"
    feature_size = 4

    def forward(self, images):
        return torch.stack(
            [images.mean((1, 2, 3)), images.std((1, 2, 3)), images[:, 0].mean((1, 2)), images[:, 2, 0, 0]],
            dim=1,
        )


def make_edits(count=8, seed=0):
    """Edits and fakes (N, 3, 32, 32) in [-1, 1] of two concepts, in turn."""
    generator = torch.Generator().manual_seed(seed)
    edits = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1
    fakes = (edits + 0.3 * torch.randn(edits.shape, generator=generator)).clamp(-1, 1)
    return fakes, edits, ["watercolour", "night"] * (count // 2)


def make_quality(edits, concepts):
    extractor = TinyFeatures()
    quality = EditQuality(extractor, lpips=False)
    quality.set_reference(reference_features(extractor, [(edits, concepts)], cache=None))
    return quality


def evaluate_on_rank(rank, folder, shares):
    """One process of the distributed test: its share of the images, then what all of them gave."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares)
    )
    fakes, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    results = []
    for share in (shares[rank], slice(0, 4 - 4 * rank)):  # the second time, rank 1 has no image
        quality.reset()
        if len(fakes[share]):
            quality.update(fakes[share], edits[share], concepts[share])
        results.append(quality.compute())
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
