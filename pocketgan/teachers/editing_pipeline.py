"""Opening a diffusers pipeline that edits photos."""

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, ControlNetModel, DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pocketgan.personalization import pipeline_class_of

# what a teacher gives by itself, or what would make more or something else than one edit of each photo
RESERVED = {
    "callback",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback_steps",
    "control_image",
    "generator",
    "image",
    "kwargs",
    "latents",
    "mask_image",
    "num_images_per_prompt",
    "output_type",
    "prompt",
    "return_dict",
    "self",
}
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")


def editor_class(name: str) -> type[DiffusionPipeline]:
    """Look up an editing pipeline of diffusers by its class name.

    Raises:
        ValueError: diffusers has no such class, or it edits no photos.
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
        raise ValueError(
            f"diffusers {diffusers.__version__} has no pipeline {name!r}; give for example "
            "StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline or FluxKontextPipeline"
        )
    taken = inspect.signature(found.__call__).parameters
    # a plain ControlNet pipeline's image is the condition, an inpainting one wants a mask as well
    if not {"image", "prompt"} <= set(taken) or {"mask_image", "num_frames"} & set(taken) or _is_text_to_image(found):
        raise ValueError(
            f"{name} does not edit photos: it must take a photo as image beside the prompt; leave pipeline_class out "
            "for the image-to-image form of what is stored, or give one such as StableDiffusionImg2ImgPipeline"
        )
    check_latents(found)
    return found


def check_latents(pipeline_class: type[DiffusionPipeline]) -> None:
    """Refuse what has no autoencoder of the usual kind (DeepFloyd IF, Kandinsky): its step in pixels is not known.

    Raises:
        ValueError: It has none.
    """
    if "vae" not in inspect.signature(pipeline_class.__init__).parameters:
        raise ValueError(
            f"{pipeline_class.__name__} has no vae and cannot be a teacher here; give a latent diffusion editor such "
            "as StableDiffusionImg2ImgPipeline or FluxKontextPipeline"
        )


def _is_text_to_image(pipeline_class: type[DiffusionPipeline]) -> bool:
    """Whether it makes pictures of text; of a ControlNet's or a T2I adapter's, ``image`` is the condition."""
    parts = inspect.signature(pipeline_class.__init__).parameters
    if "adapter" in parts:
        return True
    if "controlnet" not in parts:
        return False
    return "control_image" not in inspect.signature(pipeline_class.__call__).parameters


def check_arguments(pipeline_class: type[DiffusionPipeline], arguments: dict[str, Any]) -> None:
    """Hold arguments against the signature of a pipeline's call.

    Raises:
        ValueError: One is unknown, or the teacher gives it itself.
    """
    parameters = set(inspect.signature(pipeline_class.__call__).parameters) - RESERVED
    # a concept's prompt is for all text encoders, and tensors have no place in a YAML
    accepted = sorted(name for name in parameters if not re.search(r"prompt_\d|embeds|ip_adapter", name))
    unknown = sorted(set(arguments) - set(accepted))
    if unknown:
        raise ValueError(
            f"{pipeline_class.__name__} takes no {', '.join(unknown)} from a teacher's arguments; it takes "
            f"{', '.join(accepted)}"
        )


def open_editor(
    name: str,
    pipeline_class: type[DiffusionPipeline] | None,
    dtype: torch.dtype,
    variant: str | None = None,
    config: str | None = None,
    controlnet: str | None = None,
) -> DiffusionPipeline:
    """Open a pipeline with its weights, without its safety checker.

    Args:
        name: Repo id, local folder or single file.
        pipeline_class: Kind to open it as; None for what ``AutoPipelineForImage2Image`` makes of it, or else its own.
        dtype: Of the weights.
        variant: Of the files, such as ``fp16``.
        config: For a single file: repo id or folder of a pipeline of its kind, for what such a file lacks.
        controlnet: Repo id or local folder of a ControlNet to open it with.

    Raises:
        FileNotFoundError: Something can be neither found on this machine nor reached.
        ValueError: It holds no pipeline that edits photos, or a single file comes without its class.
    """
    options: dict[str, Any] = {"dtype": dtype}
    if controlnet is not None:
        options["controlnet"] = _opened_controlnet(controlnet, dtype)
    if name.endswith(SINGLE_FILE_SUFFIXES):
        return _open_single_file(name, pipeline_class, config, options)
    if config is not None:
        raise ValueError(f"config is for single files ({', '.join(SINGLE_FILE_SUFFIXES)}), {name} brings its own")
    stored = pipeline_class_of(name)
    if variant is not None:
        options["variant"] = variant
    if pipeline_class is not None:
        return pipeline_class.from_pretrained(name, **options, **_no_safety_checker(pipeline_class))
    stored_class = getattr(diffusers, stored, None)
    if stored_class is not None:
        check_latents(stored_class)
    try:
        return AutoPipelineForImage2Image.from_pretrained(
            name, **options, **_no_safety_checker(stored_class or DiffusionPipeline)
        )
    except ValueError as error:
        if "can't find a pipeline linked to" not in str(error):
            raise
    try:
        editor = editor_class(stored)
    except ValueError as error:
        raise ValueError(
            f"{name} holds a {stored}, of which diffusers has no image-to-image form; give an editor such as "
            "StableDiffusionInstructPix2PixPipeline, or one with an image-to-image form such as "
            "StableDiffusionPipeline or StableDiffusionXLPipeline"
        ) from error
    return editor.from_pretrained(name, **options, **_no_safety_checker(editor))


def _no_safety_checker(pipeline_class: type[DiffusionPipeline]) -> dict[str, Any]:
    """It would black out edits; pairs have a gate for that."""
    taken = inspect.signature(pipeline_class.__init__).parameters
    return {"safety_checker": None, "requires_safety_checker": False} if "requires_safety_checker" in taken else {}


def _opened_controlnet(name: str, dtype: torch.dtype) -> ControlNetModel:
    try:
        return ControlNetModel.from_pretrained(name, dtype=dtype)
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"ControlNet {name!r} is no local folder of one and cannot be reached as a repo id from here; on a machine "
            "with access run `hf download REPO_ID --local-dir FOLDER` and give FOLDER"
        ) from error


def _open_single_file(
    name: str, pipeline_class: type[DiffusionPipeline] | None, config: str | None, options: dict[str, Any]
) -> DiffusionPipeline:
    if not Path(name).is_file():
        raise FileNotFoundError(f"{name} does not exist; give a file, a folder or a repo id")
    if pipeline_class is None or not hasattr(pipeline_class, "from_single_file"):
        raise ValueError(
            f"{name} does not say which pipeline it is of; give a pipeline_class that opens single files, such as "
            "StableDiffusionImg2ImgPipeline or StableDiffusionXLImg2ImgPipeline"
        )
    if config is not None:
        options["config"] = config
    return pipeline_class.from_single_file(name, **options, **_no_safety_checker(pipeline_class))


def licence_of(name: str) -> str:
    """Read a model's licence from its card.

    Args:
        name: Repo id or local folder with the card as README.md.

    Returns:
        Such as ``openrail++``, with the licence's own name and link where the card has them; ``unknown`` without a
        card that can be read.
    """
    card_file = Path(name) / "README.md"
    if Path(name).exists() and not card_file.is_file():
        return "unknown"
    try:
        card = ModelCard.load(card_file if card_file.is_file() else name).data
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return "unknown"
    parts = [getattr(card, key, None) for key in ("license", "license_name", "license_link")]
    return ", ".join(str(part) for part in parts if part) or "unknown"
