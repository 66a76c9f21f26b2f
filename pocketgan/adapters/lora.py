"""LoRA on a generator's crucial layers, stored in PEFT's own format."""

import copy
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from pocketgan.compression import take_off_masks
from pocketgan.digest import weights_digest
from pocketgan.networks import Generator

ADAPTER_NAME = "default"  # PEFT's name for the one adapter of a model


def layer_ranks(generator: Generator, ranks: dict[str, int]) -> dict[str, int]:
    """Spread ranks given for parts of a generator over its layers.

    Args:
        generator: The base's generator.
        ranks: Rank by dotted prefix of a layer's name, for example ``{"up": 8, "up.0": 4}``; of several prefixes
            the longest counts. 0 leaves a part alone.

    Returns:
        Rank by full name of every convolution and linear layer that gets one.

    Raises:
        ValueError: A prefix fits no such layer, a rank is negative or above a layer's dimension, or none is left.
    """
    layers = {name: layer for name, layer in generator.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    used, found = set(), {}
    for name, layer in layers.items():
        prefixes = [prefix for prefix in ranks if name == prefix or name.startswith(f"{prefix}.")]
        used.update(prefixes)
        rank = ranks[max(prefixes, key=len)] if prefixes else 0
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        if rank < 0:
            raise ValueError(f"rank {rank} of layer {name} is negative; use 0 or more")
        if rank > min(outputs, inputs):
            raise ValueError(
                f"rank {rank} of layer {name} is above its dimension min({outputs} outputs, {inputs} inputs) = "
                f"{min(outputs, inputs)}; use {min(outputs, inputs)} or less"
            )
        if rank:
            found[name] = rank
    unused = sorted(set(ranks) - used)
    if unused:
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in layers))
        raise ValueError(f"ranks names {', '.join(unused)}, but the generator's layers stand under {parts}")
    if not found:
        raise ValueError("all ranks are 0; give at least one layer a rank of 1 or more")
    return found


def add_lora(generator: Generator, ranks: dict[str, int], full_layers: list[str]) -> PeftModel:
    """Freeze a generator and give its layers low-rank deltas; at first its output is unchanged, since B is 0.

    ΔW = B A with A (r × in × k × k) and B (out × r × 1 × 1), scale 1 (alpha = rank).

    Args:
        generator: The base's generator; it is changed in place.
        ranks: See ``layer_ranks``.
        full_layers: Parts trained in full and stored whole in the adapter, for example ``["stem", "head"]``.

    Returns:
        PEFT's model around the generator, called as the generator is.

    Raises:
        ValueError: See ``layer_ranks``; or a part is to be trained in full and by LoRA at once, or does not exist.
    """
    # longest first: PEFT takes the first key that ends a layer's name
    pattern = dict(sorted(layer_ranks(generator, ranks).items(), key=lambda item: -len(item[0])))
    parts = dict(generator.named_modules())
    for part in full_layers:
        if part not in parts:
            raise ValueError(f"full_layers names {part}, which the generator lacks; it has {', '.join(_top(parts))}")
        both = [name for name in pattern if name == part or name.startswith(f"{part}.")]
        if both:
            raise ValueError(f"{both[0]} has a rank and stands in full_layers ({part}) as well; choose one")
    config = LoraConfig(
        # one expression for whole names: of a list PEFT would match every layer that ends so
        target_modules="|".join(re.escape(name) for name in pattern),
        rank_pattern=pattern,
        alpha_pattern=pattern,
        modules_to_save=full_layers or None,
    )
    return get_peft_model(generator, config)


def _top(parts: dict[str, nn.Module]) -> list[str]:
    return [name for name in parts if name and "." not in name]


def read_ranks(file: Path) -> dict[str, int]:
    """Read ranks from a YAML file, such as the ``ranks.yaml`` that RankSearch leaves in a run folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no mapping of layers to whole numbers.
    """
    if not file.is_file():
        raise FileNotFoundError(f"rank file {file} does not exist; RankSearch writes RUN/ranks.yaml")
    try:
        ranks = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML file; give one such as RUN/ranks.yaml of a rank search") from error
    if not isinstance(ranks, dict) or not all(isinstance(rank, int) for rank in ranks.values()):
        raise ValueError(f"{file} holds no ranks; each line must be LAYER: RANK, such as `up.0: 8`")
    return {str(layer): rank for layer, rank in ranks.items()}


def ranks_of(adapted: PeftModel) -> dict[str, int]:
    """Ranks by full name of the generator's layer."""
    return dict(adapted.peft_config[ADAPTER_NAME].rank_pattern)


def lora_layers(adapted: PeftModel) -> dict[str, LoraLayer]:
    """Layers with a delta by the generator's own name for them."""
    generator = adapted.get_base_model()
    return {name: layer for name, layer in generator.named_modules() if isinstance(layer, LoraLayer)}


def scaled_ranks(adapted: PeftModel, factor: int) -> dict[str, int]:
    """The ranks times a factor, each at most its layer's smaller dimension: beyond that a delta gains nothing."""
    layers = lora_layers(adapted)
    return {
        name: min(factor * rank, len(layers[name].weight), layers[name].weight[0].numel())
        for name, rank in ranks_of(adapted).items()
    }


def resized(adapted: PeftModel, ranks: dict[str, int]) -> PeftModel:
    """Copy an adapted generator with its deltas in other ranks.

    Where a rank is smaller the rest of the delta is cut off, which changes nothing if ``keep_ranks`` was at work; where
    it is larger the new part starts as PEFT starts a delta, with B = 0.

    Args:
        adapted: What ``add_lora`` made.
        ranks: Rank by full name of every layer that gets one.
    """
    with torch.no_grad():
        base = copy.deepcopy(adapted).unload()
        base.requires_grad_(False)
        copied = add_lora(base, ranks, list(adapted.peft_config[ADAPTER_NAME].modules_to_save or []))
        state, found = copied.state_dict(), adapted.state_dict()
        for name, tensor in state.items():
            if name in found:
                both = tuple(
                    slice(min(ours, theirs)) for ours, theirs in zip(tensor.shape, found[name].shape, strict=True)
                )
                tensor[both] = found[name][both]
    return copied.train(adapted.training)


@torch.no_grad()
def keep_ranks(adapted: PeftModel, ranks: dict[str, int]) -> None:
    """Reduce deltas to ranks without changing a parameter's shape, so that distributed training goes on.

    Rows of A and columns of B beyond the rank become 0. They stay so in training: the gradient of either is a product
    with the other, hence 0, and an optimizer without history leaves such a weight where it is.

    Args:
        adapted: What ``add_lora`` made; changed in place.
        ranks: Rank by full name of the layer; 0 for those not named.
    """
    for name, layer in lora_layers(adapted).items():
        layer.lora_A[ADAPTER_NAME].weight[ranks.get(name, 0) :] = 0
        layer.lora_B[ADAPTER_NAME].weight[:, ranks.get(name, 0) :] = 0


def stored_bytes(adapted: PeftModel) -> int:
    """Size of the ``adapter_model.safetensors`` that ``save_adapter`` would write."""
    state = get_peft_model_state_dict(adapted)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return len(save(tensors, {"format": "pt"}))  # the header that PEFT writes


def merge(generator: nn.Module) -> Generator:
    """Fold the deltas into a copy of the weights; a generator without deltas is only copied.

    Where layers have masks (``pocketgan.compression``) the sum of weight and delta is masked as it was in training; the
    copy has plain weights with these zeros.
    """
    merged = copy.deepcopy(generator)
    masked = take_off_masks(merged)
    if isinstance(merged, PeftModel):
        merged = merged.merge_and_unload()
    with torch.no_grad():
        for layer, weight in masked.items():
            layer.weight.copy_(weight)
    return merged  # type: ignore[return-value]


def save_adapter(
    generator: PeftModel, prompt_tokens: Tensor, folder: Path, concept: str, base: dict[str, str] | None = None
) -> None:
    """Write an adapter: PEFT's files and the concept's prompt tokens.

    Args:
        generator: The adapted generator.
        prompt_tokens: (L, D).
        folder: Gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``prompt_tokens.safetensors``.
        concept: The concept's name, the key of its tokens.
        base: What tells the base: ``base_sha256`` (``weights_digest``) and ``text_encoder``; kept beside the tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as whole:
        generator.save_pretrained(whole)
        tokens_file = Path(whole) / "prompt_tokens.safetensors"
        save_file({concept: prompt_tokens.detach().cpu().contiguous()}, tokens_file, base)
        (Path(whole) / "README.md").unlink()  # PEFT's model card, a form that nobody has filled in
        for file in Path(whole).iterdir():
            file.replace(folder / file.name)


def load_adapter(
    generator: Generator, folder: Path, text_encoder: str | None = None
) -> tuple[PeftModel, dict[str, Tensor]]:
    """Put an adapter on its base; plain PEFT's ``PeftModel.from_pretrained`` does the same to the generator.

    Args:
        generator: The base's generator; it is changed in place.
        folder: What ``save_adapter`` wrote.
        text_encoder: The base's ``TextEncoder.identity``, where it is known.

    Returns:
        The adapted generator and its prompt tokens (L, D) by concept.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: The adapter belongs to another base or another text encoder.
    """
    tokens = read_tokens(folder, generator, text_encoder)
    return PeftModel.from_pretrained(generator, folder), tokens


def read_tokens(folder: Path, generator: Generator, text_encoder: str | None = None) -> dict[str, Tensor]:
    """Read an adapter's prompt tokens (L, D) by concept, once it is sure that the adapter belongs to this base.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: The adapter belongs to another base or another text encoder.
    """
    file = folder / "prompt_tokens.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no adapter ({file.name} is missing); give RUN/adapter of a `fit`")
    with safe_open(file, "pt") as opened:
        found = opened.metadata() or {}
    if text_encoder is not None and found.get("text_encoder", text_encoder) != text_encoder:
        raise ValueError(
            f"adapter {folder} was trained with the text encoder {found['text_encoder']}, this base with "
            f"{text_encoder}; put it on its own base"
        )
    digest = weights_digest(generator)
    if found.get("base_sha256", digest) != digest:
        raise ValueError(
            f"adapter {folder} was trained on another base (weights {found['base_sha256'][:12]}…, here "
            f"{digest[:12]}…); put it on its own base"
        )
    return load_file(file)
