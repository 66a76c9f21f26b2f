"""A diffusion pipeline as the teacher."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from pocketgan.caches import DeepCache, DenoiserCache
from pocketgan.images import to_image
from pocketgan.personalization import load_personalization
from pocketgan.sdedit import steps_of_call
from pocketgan.teachers.editing_pipeline import check_arguments, editor_class, licence_of, open_editor
from pocketgan.teachers.pipeline_teacher import PipelineTeacher
from pocketgan.text import as_prompts

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DiffusersTeacher(PipelineTeacher):
    """Any diffusers pipeline that edits photos by a prompt.

    InstructPix2Pix, the image-to-image form of a text-to-image model (SDEdit, with ``strength``; Meng et al., arXiv
    2108.01073), one-step turbo models, ControlNet's image-to-image form, and editors such as FLUX.1 Kontext, FLUX.2 and
    Qwen-Image-Edit. Photos go in as 8-bit pictures, each with a generator of its own on the CPU, seeded by its pair, so
    that no edit depends on the photos beside it. Where a pipeline takes height and width, they are the photo's: left to
    itself, an editor may give back another size, or a shifted picture. The pipeline's own safety checker is left out
    (``SafetyGate`` scores without blacking out); should a pipeline flag an edit all the same, it comes out as NaN.

    Args:
        pipeline: Repo id, for example ``timbrooks/instruct-pix2pix``; a local folder; or a single file
            (``.safetensors``, ``.ckpt``), for which ``pipeline_class`` is needed.
        prompts: Concepts: name to prompt, or a YAML file of them (``read_prompts``).
        arguments: Of the pipeline's call, by name, for example ``num_inference_steps``, ``guidance_scale``,
            ``image_guidance_scale`` or ``strength``; the pipeline's defaults for the rest.
        pipeline_class: Class in diffusers to open it as; None for the stored model's image-to-image form, or its own.
            If given, arguments are checked before any weights are read.
        scheduler: Class in diffusers that replaces the stored scheduler, with the stored one's configuration.
        dtype: Of the weights.
        variant: Of the files, such as ``fp16``.
        config: For a single file: repo id or folder of a pipeline of its kind.
        controlnet: Repo id or folder of a ControlNet to put beside the pipeline.
        control: What a ControlNet sees: the photo itself, or its Canny edges.
        loras: LoRA files, folders or repo ids with their scales; they are merged into the weights.
        personalization: ``RUN/personalization`` of a ``Personalization`` run on the same pipeline; prompts then hold
            its token.
        cache: Spares work between steps.
        batch_size: Photos in one call, at most a batch of the datamodule; halved as long as memory runs out. With 1,
            edits are the same to the last bit whatever photos come together; with more, the last bits may depend on
            the number, never the random draws. Pipelines that take several pictures as one edit's references need 1.
        attention_slicing: Attention in slices: less memory, slower.
        vae_slicing: The autoencoder takes one photo at a time.
        vae_tiling: The autoencoder works in tiles, which may leave seams.
        offload: Keep weights in main memory and bring each network (``model``) or layer (``sequential``) to the GPU as
            it is needed.
        compile: Compile the denoiser.
        licence: Of the model, for the manifest; read from its card if None.

    Raises:
        FileNotFoundError: Pipeline, ControlNet, LoRA or personalization cannot be found.
        ValueError: There is no prompt; an argument is unknown, out of range or the teacher's own; the pipeline edits
            no photos; options do not go together; or no prompt holds the personalization's token.
    """

    def __init__(
        self,
        pipeline: str,
        prompts: dict[str, str] | Path,
        arguments: dict[str, Any] | None = None,
        pipeline_class: str | None = None,
        scheduler: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        variant: str | None = None,
        config: str | None = None,
        controlnet: str | None = None,
        control: Literal["photo", "canny"] = "photo",
        loras: dict[str, float] | None = None,
        personalization: Path | None = None,
        cache: DenoiserCache | None = None,
        batch_size: int = 1,
        attention_slicing: bool = False,
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        offload: Literal["model", "sequential"] | None = None,
        compile: bool = False,  # noqa: A002
        licence: str | None = None,
    ) -> None:
        prompts = as_prompts(prompts)
        if not prompts:
            raise ValueError(
                "prompts is empty; give concepts as a mapping of name to prompt, for example oil: an oil painting"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        if compile and isinstance(cache, DeepCache):
            raise ValueError(
                "DeepCache does something else at each step, which cannot be compiled; leave one of them out"
            )
        if control == "canny":
            _canny()  # refuses before anything is loaded
        arguments = dict(arguments or {})
        given_class = None if pipeline_class is None else editor_class(pipeline_class)
        if given_class is not None:
            _check_call(given_class, arguments)  # before weights are read
        opened = open_editor(pipeline, given_class, _DTYPES[dtype], variant, config, controlnet)
        if given_class is None:
            _check_call(type(opened), arguments)
        _check_channels(opened)
        self._signature = inspect.signature(type(opened).__call__).parameters
        if batch_size > 1 and not _edits_batches(type(opened).__name__, set(self._signature)):
            raise ValueError(
                f"{type(opened).__name__} takes several pictures as references of one edit; set batch_size to 1"
            )
        if scheduler is not None:
            opened.scheduler = _scheduler_class(scheduler).from_config(opened.scheduler.config)
        _load_loras(opened, loras or {})
        if personalization is not None:
            token = load_personalization(opened, personalization)
            if token is not None and not any(token in prompt for prompt in prompts.values()):
                raise ValueError(
                    f"{personalization} taught the token {token}, which none of the prompts holds "
                    f"({', '.join(prompts.values())}); write it into them"
                )
        super().__init__(opened)
        self._name, self._licence = pipeline, licence
        self._added = [*(loras or {}), *(str(each) for each in (controlnet, personalization) if each is not None)]
        self._prompts, self._arguments = prompts, arguments
        self._dtype, self._control = dtype, control
        self._batch_size, self._wanted_batch_size = batch_size, batch_size
        self._vae_slicing, self._offload = vae_slicing, offload
        self._attention_slicing, self._vae_tiling, self._compile = attention_slicing, vae_tiling, compile
        self._cache = cache
        self._is_ready = False
        _save_memory(opened, attention_slicing, vae_slicing, vae_tiling)
        if cache is not None:
            cache.enable(opened, arguments)
        if offload is not None:
            self._weights_sha256  # noqa: B018  computed while the weights lie in main memory
            # no submodules, or Lightning would bring them all to the GPU
            self.networks = nn.ModuleDict()

    @property
    @override
    def concepts(self) -> dict[str, str]:
        return dict(self._prompts)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel, arguments and cache too."""
        return {
            **super().settings,
            "arguments": self._arguments,
            "dtype": self._dtype,
            "control": self._control if "control_image" in self._signature else None,
            "cache": None if self._cache is None else self._cache.settings,
            "attention_slicing": self._attention_slicing,
            "vae_tiling": self._vae_tiling,
            "compile": self._compile,
            # with several photos in a call the last bits depend on their number, even where memory makes it smaller
            "batch": {"size": self._wanted_batch_size, "vae_slicing": self._vae_slicing}
            if self._wanted_batch_size > 1
            else None,
        }

    @property
    @override
    def origin(self) -> dict[str, str]:
        """The model's name, without the folders above it, and its licence; what was added to it, with theirs."""
        added = {name: f"{_public_name(name)} ({licence_of(name)})" for name in self._added}
        return {
            "model": _public_name(self._name),
            "licence": self._licence or licence_of(self._name),
            **({"added": ", ".join(added.values())} if added else {}),
        }

    @override
    @torch.no_grad()
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        if not seeds:
            return photos
        self._check_size(*photos.shape[-2:])
        self._make_ready(photos.device)
        edits: list[Tensor] = []
        while len(edits) < len(seeds):
            rows = slice(len(edits), len(edits) + self._batch_size)
            try:
                edits.extend(self._edited(photos[rows].float(), prompt, seeds[rows]))
                continue
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if len(seeds[rows]) == 1:
                    height, width = photos.shape[-2:]
                    raise MemoryError(
                        f"not even one photo of {height}×{width} fits into memory with {self._name}; give a smaller "
                        "data.size, dtype bfloat16, vae_tiling, attention_slicing or offload"
                    ) from error
            # outside the handler: its traceback holds on to the tensors of the call
            self._batch_size = (len(seeds[rows]) + 1) // 2
            clear_device_cache(garbage_collection=True)
        return torch.stack(edits).to(photos)

    def _make_ready(self, device: torch.device) -> None:
        """What needs the device that Lightning chose."""
        if self._is_ready:
            return
        if self._offload is not None:
            if device.type == "cpu":
                raise ValueError(f"offload={self._offload} needs a GPU, and this run is on the CPU; leave it out")
            ways = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}
            getattr(self._pipeline, ways[self._offload])(device=device)
        if self._compile:
            denoiser = getattr(self._pipeline, "unet", None) or self._pipeline.transformer
            if getattr(denoiser, "_repeated_blocks", None):
                denoiser.compile_repeated_blocks()
            else:
                denoiser.compile()
        self._is_ready = True

    def _check_size(self, height: int, width: int) -> None:
        step = self._pipeline.vae_scale_factor
        unet = getattr(self._pipeline, "unet", None)
        step *= 2 if unet is None else 2 ** (len(unet.config.block_out_channels) - 1)
        if height % step or width % step:
            raise ValueError(f"photos are {height}×{width}, the pipeline's step is {step}; set data.size to a multiple")

    def _edited(self, photos: Tensor, prompt: str, seeds: list[int]) -> list[Tensor]:
        """Edit (B, 3, H, W) in [-1, 1] in one call; B edits (3, H, W)."""
        height, width = photos.shape[-2:]
        pictures = [to_image(photo) for photo in photos]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # what keeps pipelines from scaling a photo to sizes of their own
        sizes = {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
        call = {name: value for name, value in sizes.items() if name in self._signature} | self._arguments
        inputs: dict[str, Any] = {"prompt": [prompt] * len(seeds), "image": pictures, "generator": generators}
        if "control_image" in self._signature:
            inputs["control_image"] = [
                _canny_edges(picture) if self._control == "canny" else picture for picture in pictures
            ]
        if isinstance(call.get("negative_prompt"), str):
            inputs["negative_prompt"] = [call.pop("negative_prompt")] * len(seeds)
        if len(seeds) == 1:
            # a list of one picture means references to some
            inputs = {name: value[0] for name, value in inputs.items()}
        with nullcontext() if self._cache is None else self._cache.of_one_call():
            output = self._pipeline(**inputs, **call, output_type="pt")
        return self._checked(output, len(seeds), height, width)

    def _checked(self, output: Any, count: int, height: int, width: int) -> list[Tensor]:
        name = type(self._pipeline).__name__
        images = getattr(output, "images", None)
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise ValueError(f"{name} returned no batch of pictures; it does not edit photos one to one")
        if len(images) != count:
            raise ValueError(f"{name} returned {len(images)} pictures for {count} photos; it must return one for each")
        if images.shape[-2:] != (height, width):
            found = "×".join(str(side) for side in images.shape[-2:])
            raise ValueError(
                f"{name} returned {found} pixels for a photo of {height}×{width}; set data.size to one that it "
                "keeps, or height and width in its arguments"
            )
        edits = list(images.float().mul(2).sub(1))
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * count
        return [torch.full_like(edit, torch.nan) if bad else edit for edit, bad in zip(edits, flagged, strict=True)]


def _public_name(name: str) -> str:
    return Path(name).name if Path(name).exists() else name


def _check_call(pipeline_class: type[diffusers.DiffusionPipeline], arguments: dict[str, Any]) -> None:
    """Refuse arguments that a pipeline does not take, and a strength that leaves no step to do."""
    check_arguments(pipeline_class, arguments)
    steps_of_call(pipeline_class, arguments)


def _check_channels(pipeline: Any) -> None:
    """Refuse weights of another task under an editor's name, such as those of inpainting."""
    unet, parameters = getattr(pipeline, "unet", None), inspect.signature(type(pipeline).__call__).parameters
    if unet is None or "depth_map" in parameters:
        return
    latent = pipeline.vae.config.latent_channels
    wanted = 2 * latent if "image_guidance_scale" in parameters else latent
    if unet.config.in_channels != wanted:
        raise ValueError(
            f"{type(pipeline).__name__} needs a U-Net of {wanted} input channels, the stored one has "
            f"{unet.config.in_channels}: it was trained for another task, such as inpainting; give an editor's weights"
        )


def _edits_batches(name: str, parameters: set[str]) -> bool:
    return bool({"strength", "image_guidance_scale"} & parameters) or name == "FluxKontextPipeline"


def _scheduler_class(name: str) -> type[diffusers.SchedulerMixin]:
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(
            f"diffusers has no scheduler {name!r}; give for example EulerAncestralDiscreteScheduler, DDIMScheduler or "
            "DPMSolverMultistepScheduler"
        )
    return found


def _save_memory(pipeline: Any, attention_slicing: bool, vae_slicing: bool, vae_tiling: bool) -> None:
    if attention_slicing:
        if not hasattr(pipeline, "unet"):
            raise ValueError(f"attention_slicing is for U-Nets, {type(pipeline).__name__} has none; leave it out")
        pipeline.enable_attention_slicing()
    for wanted, method in ((vae_slicing, "enable_slicing"), (vae_tiling, "enable_tiling")):
        if wanted:
            if not hasattr(pipeline.vae, method):
                raise ValueError(f"{type(pipeline.vae).__name__} cannot {method}; leave vae_{method[7:]} out")
            getattr(pipeline.vae, method)()


def _load_loras(pipeline: Any, loras: dict[str, float]) -> None:
    """Merge LoRA files into the weights, so that they cost no time and are part of the weights' digest."""
    if not loras:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} takes no LoRA files; leave loras out")
    names = [f"lora_{place}" for place in range(len(loras))]
    for name, source in zip(names, loras, strict=True):
        file = _lora_file(source)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, list(loras.values()))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _lora_file(source: str) -> Path:
    """The LoRA of a file, a folder or a repo id, from the Hugging Face cache if it is there.

    Raises:
        FileNotFoundError: There is none, or it cannot be reached.
        ValueError: There are several, and none of the usual name.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        try:
            return Path(hf_hub_download(source, LORA_WEIGHT_NAME_SAFE))
        except (OSError, EntryNotFoundError, HFValidationError):
            path = _downloaded(source)
    files = sorted(path.glob("*.safetensors"))
    usual = [file for file in files if file.name == LORA_WEIGHT_NAME_SAFE] or files
    if not usual:
        raise FileNotFoundError(f"LoRA {source} holds no .safetensors file; give one, a folder or a repo id with one")
    if len(usual) > 1:
        names = ", ".join(file.name for file in usual)
        raise ValueError(f"LoRA {source} holds several files ({names}); download the one to take and give its path")
    return usual[0]


def _downloaded(repo_id: str) -> Path:
    """Folder of a repo's weights in the Hugging Face cache, those of its subfolders left out."""
    try:
        return Path(snapshot_download(repo_id, allow_patterns="*.safetensors", ignore_patterns="*/*"))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"LoRA {repo_id} is no file or folder here and cannot be reached as a repo id; give a .safetensors file"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _canny() -> Any:
    try:
        from skimage.feature import canny
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "control canny needs scikit-image, which is not installed; run: pip install 'pocketgan[demo]'"
        ) from error
    return canny


def _canny_edges(picture: Image.Image) -> Image.Image:
    """White edges on black."""
    edges = _canny()(np.asarray(picture.convert("L"), dtype=np.float64) / 255)
    return Image.fromarray(edges.astype(np.uint8) * 255).convert("RGB")
