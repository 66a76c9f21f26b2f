"""Pipelines of diffusers from disk or the hub, and personalizations on top of them."""

import json
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file

from pocketgan.personalization.custom_diffusion import WEIGHTS_FILE, load_custom_diffusion
from pocketgan.personalization.placeholder_token import TOKEN_FILE

LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name


def pipeline_class_of(name: str) -> str:
    """Look up which pipeline a repo or folder holds, before any weights are read.

    Args:
        name: Repo id or local folder.

    Returns:
        The class name in its ``model_index.json``.

    Raises:
        FileNotFoundError: It can be neither found on this machine nor reached.
    """
    file = Path(name) / "model_index.json"
    try:
        if not file.is_file():
            file = Path(hf_hub_download(name, file.name))
    # HFValidationError: what is no repo id, such as a path
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"pipeline {name!r} is no local folder with a model_index.json and cannot be reached as a repo id from "
            "here; on a machine with access run `hf download REPO_ID --local-dir FOLDER`, copy FOLDER to this machine "
            "and give its path"
        ) from error
    return str(json.loads(file.read_text())["_class_name"])


def load_pipeline(name: str) -> StableDiffusionPipeline:
    """Open a Stable Diffusion pipeline (1.x or 2.x) in float32, without its safety checker.

    Args:
        name: Repo id, for example ``stable-diffusion-v1-5/stable-diffusion-v1-5``, or a local folder.

    Raises:
        FileNotFoundError: See ``pipeline_class_of``.
        ValueError: It holds another kind of pipeline.
    """
    found = pipeline_class_of(name)
    if found != StableDiffusionPipeline.__name__:
        raise ValueError(
            f"{name} holds a {found}; personalization takes a StableDiffusionPipeline, with one CLIP text encoder and "
            "a U-Net, such as stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    return StableDiffusionPipeline.from_pretrained(name, safety_checker=None, requires_safety_checker=False)


def load_personalization(pipeline: Any, folder: Path | str) -> str | None:
    """Put what a ``Personalization`` run stored on a pipeline of the kind that it was trained on.

    Args:
        pipeline: Any pipeline with Stable Diffusion's text encoder and U-Net; changed in place.
        folder: ``RUN/personalization``.

    Returns:
        The token to write into prompts; None if the method has none.

    Raises:
        FileNotFoundError: The folder holds no personalization.
    """
    folder = Path(folder)
    names = (TOKEN_FILE, LORA_FILE, WEIGHTS_FILE)
    files = [name for name in names if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(names)}; give the personalization/ folder of a `pocketgan fit -c "
            "configs/personalization/….yaml`"
        )
    if TOKEN_FILE in files:
        pipeline.load_textual_inversion(str(folder))
    if LORA_FILE in files:
        pipeline.load_lora_weights(str(folder))
    if WEIGHTS_FILE in files:
        load_custom_diffusion(pipeline, folder)
    return next(iter(load_file(folder / TOKEN_FILE))) if TOKEN_FILE in files else None
