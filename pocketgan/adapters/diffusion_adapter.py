"""What of a diffusion transformer is trained for new data, and how that is stored."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.embeddings import LabelEmbedding, TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import RMSNorm
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pocketgan.adapters.class_table import class_tables, prepare_classes
from pocketgan.digest import weights_digest
from pocketgan.files import write_whole

ADAPTER_FILE = "adapter.safetensors"
BLOCK_LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm)


class DiffusionAdapter(ABC):
    """Slot: a way to adapt a diffusion transformer with the attribute names of diffusers' DiT.

    ``add`` freezes the transformer, adds what the method adds and leaves exactly what trains with ``requires_grad``.
    Parameters are found by the type of their module and by the name of the parameter itself, never by a part of a
    module's name: DiffFit's published list (bias, norm, gamma, y_embed) would train 301 of 750 M on diffusers' DiT,
    whose adaptive norms keep their projections and time embeddings under ``norm1``.

    Attributes:
        decays: Whether weight decay is allowed; it would pull biases and scale factors towards 0, which is where
            neither started.
    """

    decays = False

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor as plain JSON values."""

    @abstractmethod
    def add(self, transformer: nn.Module) -> None:
        """Freeze a transformer and mark or add what trains; its output does not change.

        Args:
            transformer: Changed in place.

        Raises:
            TypeError: It is built otherwise than diffusers' DiT.
            ValueError: It has an adapter already.
        """


def freeze(transformer: nn.Module) -> int:
    """Freeze a transformer once it is sure that adapters know their way in it.

    Returns:
        The number of its blocks.

    Raises:
        TypeError: It is built otherwise than diffusers' DiT.
        ValueError: It has an adapter already.
    """
    name, blocks = type(transformer).__name__, getattr(transformer, "transformer_blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise TypeError(
            f"{name} has no transformer_blocks; adapters take a transformer such as diffusers' DiTTransformer2DModel"
        )
    if any(isinstance(module, BaseTunerLayer) for module in transformer.modules()):
        raise ValueError(f"this {name} has an adapter already; load the transformer afresh, or merge the first one")
    for number, block in enumerate(blocks):
        layers = dict(block.named_modules())
        for layer in BLOCK_LAYERS:
            if not isinstance(layers.get(layer), nn.Linear):
                raise TypeError(
                    f"transformer_blocks.{number} of {name} has no Linear {layer}; adapters take blocks such as those "
                    "of diffusers' DiTTransformer2DModel"
                )
    transformer.requires_grad_(False)
    return len(blocks)


def biases(transformer: nn.Module) -> Iterator[nn.Parameter]:
    """Biases outside the time embedding.

    DiffFit's figure 4 draws the time embedding frozen; two ports of it train its biases, since their list of names
    matches them. Here the figure counts.
    """
    for module in _without(transformer, TimestepEmbedding):
        yield from (value for name, value in module.named_parameters(recurse=False) if name == "bias")


def norm_weights(transformer: nn.Module) -> Iterator[nn.Parameter]:
    """Affine weights and biases of norms; DiT's own norms have none."""
    for module in _without(transformer, TimestepEmbedding):
        if isinstance(module, NORMS):
            yield from module.parameters(recurse=False)


def class_weights(transformer: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of the class table."""
    for table in class_tables(transformer):
        yield from table.parameters()


def _without(module: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """A module and all in it, except for what stands in modules of a kind."""
    if not isinstance(module, kind):
        yield module
        for child in module.children():
            yield from _without(child, kind)


def trained_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """What ``add`` left to train, by name; a tensor that several modules share comes once."""
    return {name: value for name, value in transformer.named_parameters() if value.requires_grad}


@torch.no_grad()
def load_trained(transformer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into what ``add`` left to train.

    Args:
        transformer: With the same adapter added.
        tensors: By the names of ``trained_parameters``.

    Raises:
        ValueError: A name or a shape differs.
    """
    parameters = trained_parameters(transformer)
    missing, unexpected = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unexpected:
        raise ValueError(
            f"the tensors are not of this adapter: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}); use the settings that they were trained with"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensors[name].shape)} there and {tuple(parameter.shape)} here; use the settings and "
                "the number of classes that it was trained with"
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def adapter_bytes(
    adapter: DiffusionAdapter, tensors: Mapping[str, Tensor], classes: list[str], new_classes: bool, base_sha256: str
) -> bytes:
    """Content of the file that ``save_diffusion_adapter`` writes."""
    about = {
        "adapter": type(adapter).__name__,
        "settings": json.dumps(adapter.settings),
        "classes": json.dumps(classes),
        "new_classes": json.dumps(new_classes),
        "base_sha256": base_sha256,
    }
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, about)


def save_diffusion_adapter(
    folder: Path,
    adapter: DiffusionAdapter,
    tensors: Mapping[str, Tensor],
    classes: list[str],
    new_classes: bool,
    base_sha256: str,
) -> None:
    """Write ``adapter.safetensors``: the trained tensors, and in its header how to put them back.

    Args:
        folder: Is made if need be.
        adapter: What they were trained as.
        tensors: By the names of ``trained_parameters``.
        classes: Names of the classes in the order of the table.
        new_classes: Whether the table has new rows for them.
        base_sha256: ``weights_digest`` of the transformer before any of this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ADAPTER_FILE, adapter_bytes(adapter, tensors, classes, new_classes, base_sha256))


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [found for below in kind.__subclasses__() for found in (below, *_subclasses(below))]


def load_diffusion_adapter(transformer: nn.Module, folder: Path | str) -> list[str]:
    """Put a stored adapter on its base.

    Args:
        transformer: The base as it was loaded; changed in place.
        folder: Of ``adapter.safetensors``, such as ``RUN/adapter``.

    Returns:
        Names of the classes in the order of the table.

    Raises:
        FileNotFoundError: There is no adapter.
        ValueError: It belongs to another base, or is no such file.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_FILE}; give RUN/adapter of a DiffusionAdaptation")
    with safe_open(file, "pt") as opened:
        about = opened.metadata() or {}
    kinds = {kind.__name__: kind for kind in _subclasses(DiffusionAdapter)}
    if about.get("adapter") not in kinds:
        raise ValueError(
            f"{file} names the adapter {about.get('adapter')}; known are {', '.join(sorted(kinds))}. Give the file of "
            "a DiffusionAdaptation"
        )
    digest = weights_digest(transformer)
    if digest != about["base_sha256"]:
        raise ValueError(
            f"{file} was trained on another base (weights {about['base_sha256'][:12]}…, here {digest[:12]}…); put it "
            "on its own base"
        )
    classes: list[str] = json.loads(about["classes"])
    prepare_classes(transformer, len(classes), json.loads(about["new_classes"]))
    kinds[about["adapter"]](**json.loads(about["settings"])).add(transformer)
    load_trained(transformer, load_file(file))
    return classes


@torch.no_grad()
def merge_diffusion_adapter(transformer: ModelMixin) -> ModelMixin:
    """Fold an adapter into a plain transformer of diffusers.

    The class table keeps the base's number of rows where the new classes are fewer, so that "no class" stays where
    ``DiTPipeline`` looks for it: at label 1000 whatever the config says.

    Args:
        transformer: With an adapter; left as it is.

    Returns:
        A copy that ``save_pretrained`` writes and a pipeline takes: ``DiTPipeline.from_pretrained(BASE,
        transformer=merged)``. Label k is the k-th class.
    """
    # PEFT folds deltas into weights in place, which its unmerging gives back only roughly
    state = dict(transformer.state_dict())
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer):
            folded = _folded(module)
            for key in [key for key in state if key.startswith(f"{name}.")]:
                del state[key]
            state |= {f"{name}.{key}": value for key, value in folded.items()}
    config = dict(transformer.config)
    table = class_tables(transformer)[0]
    config["num_embeds_ada_norm"] = rows = max(table.num_classes, config["num_embeds_ada_norm"])
    for name, module in transformer.named_modules(remove_duplicate=False):
        if isinstance(module, LabelEmbedding):
            trained = module.embedding_table.weight
            padding = trained.new_zeros(rows - module.num_classes, trained.shape[1])
            state[f"{name}.embedding_table.weight"] = torch.cat((trained[:-1], padding, trained[-1:]))
    merged = cast(ModelMixin, type(transformer).from_config(config)).to(trained)
    merged.load_state_dict(state)
    return merged.eval().requires_grad_(False)


def _folded(layer: BaseTunerLayer) -> dict[str, Tensor]:
    copied = copy.deepcopy(layer)
    copied.merge()
    return dict(copied.get_base_layer().state_dict())
