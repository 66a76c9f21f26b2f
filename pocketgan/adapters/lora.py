"""LoRA on a generator's crucial layers, stored in PEFT's own format."""

import copy
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketgan.networks import Generator


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


def merge(generator: nn.Module) -> Generator:
    """Fold the deltas into a copy of the weights; a generator without deltas is only copied."""
    merged = copy.deepcopy(generator)
    return merged.merge_and_unload() if isinstance(merged, PeftModel) else merged  # type: ignore[return-value]


def save_adapter(generator: PeftModel, prompt_tokens: Tensor, folder: Path, concept: str) -> None:
    """Write an adapter: PEFT's files and the concept's prompt tokens.

    Args:
        generator: The adapted generator.
        prompt_tokens: (L, D).
        folder: Gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``prompt_tokens.safetensors``.
        concept: The concept's name, the key of its tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as whole:
        generator.save_pretrained(whole)
        save_file({concept: prompt_tokens.detach().cpu().contiguous()}, Path(whole) / "prompt_tokens.safetensors")
        (Path(whole) / "README.md").unlink()  # PEFT's model card, a form that nobody has filled in
        for file in Path(whole).iterdir():
            file.replace(folder / file.name)


def load_adapter(generator: Generator, folder: Path) -> tuple[PeftModel, dict[str, Tensor]]:
    """Put an adapter on its base; plain PEFT's ``PeftModel.from_pretrained`` does the same to the generator.

    Args:
        generator: The base's generator; it is changed in place.
        folder: What ``save_adapter`` wrote.

    Returns:
        The adapted generator and its prompt tokens (L, D) by concept.
    """
    return PeftModel.from_pretrained(generator, folder), load_file(folder / "prompt_tokens.safetensors")
