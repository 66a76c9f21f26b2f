"""Features of the Inception network that FID and KID are defined on."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketgan.metrics.feature_extractor import FeatureExtractor
from pocketgan.metrics.frozen_module import FrozenModule

_FILE_NAME = "inception-2015-12-05.pt"


class InceptionFeatures(FrozenModule, FeatureExtractor):
    """Inception-V3 features as clean-fid computes them, for values comparable with the literature.

    Network and resizing are clean-fid's own (Parmar et al. 2022, "On Aliased Resizing and Surprising
    Subtleties in GAN Evaluation", arXiv:2104.11222): TorchScript weights of NVlabs' stylegan2-ada-pytorch,
    images rounded to uint8 as if read from a file, then Pillow's antialiased bicubic to 299 px in float.

    The resizing runs on the CPU, image by image: about 0.1 s per image with the network on 2 cores.

    Args:
        weights: The file ``inception-2015-12-05.pt``, or the folder that it lies in. None: the folder
            ``checkpoints`` of ``torch.hub.get_dir()``.
        download: Fetch the file (91 MB) into that place if it is missing.

    Raises:
        FileNotFoundError: If the file is missing and ``download`` is False.
    """

    frechet_name = "fid"
    kernel_name = "kid"
    feature_size = 2048

    def __init__(self, weights: Path | None = None, download: bool = False) -> None:
        super().__init__()
        from cleanfid import downloads_helper
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        folder = weights or Path(torch.hub.get_dir()) / "checkpoints"
        if folder.name == _FILE_NAME:
            folder = folder.parent
        file = folder / _FILE_NAME
        if not file.is_file():
            if not download:
                raise FileNotFoundError(
                    f"InceptionFeatures needs the file {_FILE_NAME}; looked for {file}. "
                    f"Get it from NVlabs' stylegan2-ada-pytorch, {downloads_helper.inception_url}, and put "
                    "it there, or name its place with `weights`, or set `download: true`. "
                    "EfficientNetLite0Features needs no download."
                )
            folder.mkdir(parents=True, exist_ok=True)
            # clean-fid's own download leaves half a file when it is cut off; this one moves it in whole
            torch.hub.download_url_to_file(downloads_helper.inception_url, str(file))
        with warnings.catch_warnings():
            # TorchScript is deprecated since torch 2.11, but these weights exist in no other form:
            # https://pytorch.org/blog/pytorch-2-11-release-blog/
            warnings.filterwarnings("ignore", message=".*torch.jit.load. is deprecated")
            self.network = InceptionV3W(str(folder), download=False)
        self._resize = build_resizer("clean")
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, 2048) float32.
        """
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()
        resized = np.stack([self._resize(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        features: Tensor = self.network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(images.device))
        return features
