"""Parts of a class-conditional diffusion pipeline, from a folder or a repo id."""

import warnings
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
from torch import Tensor

_PARTS = {
    "transformer": (DiTTransformer2DModel, "config.json"),
    "vae": (AutoencoderKL, "config.json"),
    "scheduler": (DDPMScheduler, "scheduler_config.json"),
}


def load_transformer(name: str) -> DiTTransformer2DModel:
    """Load the transformer of a pipeline, or one that stands alone.

    Args:
        name: Folder or repo id, such as ``facebook/DiT-XL-2-256``.

    Raises:
        FileNotFoundError: It cannot be reached or is no such thing.
    """
    return _load("transformer", name)


def load_autoencoder(name: str) -> AutoencoderKL:
    """Load the autoencoder of a pipeline, or one that stands alone; frozen, in eval mode.

    Args:
        name: Folder or repo id.

    Raises:
        FileNotFoundError: It cannot be reached or is no such thing.
    """
    return _load("vae", name).eval().requires_grad_(False)


def downscaling(autoencoder: AutoencoderKL) -> int:
    """Pixels of a picture's side for each cell of its latent."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def scaled_latents(latents: Tensor, autoencoder: AutoencoderKL) -> Tensor:
    """An autoencoder's latents as its diffusion model expects them."""
    scaled: Tensor = (latents - (autoencoder.config.shift_factor or 0)) * autoencoder.config.scaling_factor
    return scaled


def load_scheduler(name: str) -> DDPMScheduler:
    """Take a pipeline's noise levels; DiT's own, linear from 1e-4 to 0.02 over 1000 steps, where there are none.

    Args:
        name: Folder or repo id of a pipeline or a transformer.
    """
    try:
        return _load("scheduler", name)
    except FileNotFoundError:
        return DDPMScheduler()


def _load(part: str, name: str) -> Any:
    kind, config = _PARTS[part]
    folder, errors = Path(name), []
    for subfolder in (part, None):
        if folder.exists() and not (folder / (subfolder or "") / config).is_file():
            continue
        try:
            with warnings.catch_warnings():
                # diffusers 0.42 hands huggingface_hub an argument that it has dropped
                warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
                return kind.from_pretrained(name, subfolder=subfolder)
        except OSError as error:  # diffusers' and the hub's errors of files that are not there
            errors.append(str(error).splitlines()[0])
    if folder.exists():
        found = f"{name} holds neither {part}/{config} nor a {config} that loads" + "".join(f" ({e})" for e in errors)
    else:
        found = f"{name} is no folder here and no repo that can be reached"
    raise FileNotFoundError(
        f"{found}; download the repo where there is a network (`hf download REPO --local-dir FOLDER`, for example "
        f"facebook/DiT-XL-2-256) and give FOLDER, with {part}/{config} and its weights in it"
    )
