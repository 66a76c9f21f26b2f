"""A run folder turned back into its model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from peft import PeftModel

from pocketgan.adapters import SwitchableGenerator
from pocketgan.compression import bake_masks

if TYPE_CHECKING:
    from lightning_modules.paired_gan import PairedGAN


@contextmanager
def constructor_errors_unwrapped() -> Iterator[None]:
    """Show what a class of a config refused, where jsonargparse buries it under all that it tried besides.

    Raises:
        Exception: The error of the class's own constructor.
    """
    try:
        yield
    except ValueError as error:
        cause: BaseException = error
        while "Does not validate against any of the Union subtypes" in str(cause) and (
            cause.__cause__ or cause.__context__
        ):
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        if cause is error:
            raise
        raise cause from None


def _read_config(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{run} is not a run folder: it holds no config.yaml; give the folder of a `pocketgan fit`"
        )
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def trained_data_of(run: Path) -> dict[str, Any]:
    """Arguments of the datamodule that a run was trained with.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    arguments: dict[str, Any] = _read_config(run)["data"]["init_args"]
    return arguments


def without_text_encoder(text_encoder: Any, state: dict[str, Any]) -> dict[str, Any] | None:
    """Config of a text encoder that serves a checkpoint's prompts from what it stores.

    Args:
        text_encoder: Config of the encoder that it was trained with.
        state: The checkpoint.

    Returns:
        Class and arguments of an ``EncodedPrompts``; None if the checkpoint stores no prompts' tokens, because they are
        weights or it is older than that.
    """
    if "encoded_prompts" not in state:
        return None
    encoded = state["encoded_prompts"]
    arguments = {"token_size": encoded["token_size"], "identity": encoded["identity"], "encoder": text_encoder}
    return {"class_path": "pocketgan.text.EncodedPrompts", "init_args": arguments}


def load_run(run: Path, checkpoint: str = "last.ckpt") -> "PairedGAN":
    """Load a trained model: ``config.yaml`` says what it is, ``checkpoints/`` holds its weights.

    Args:
        run: Run folder of a ``fit``.
        checkpoint: File in ``checkpoints/``.

    Returns:
        The module in eval mode on the CPU.

    Raises:
        FileNotFoundError: The folder is no run, or the run has no such checkpoint yet.
        ValueError: The checkpoint is of another architecture than config.yaml says.
    """
    import lightning_modules as modules

    config, weights_file = _read_config(run), run / "checkpoints" / checkpoint
    if not weights_file.is_file():
        found = ", ".join(sorted(file.name for file in weights_file.parent.glob("*.ckpt"))) or "none"
        raise FileNotFoundError(f"run {run} has no checkpoint {checkpoint} (found: {found}); let its `fit` reach one")
    arguments = config["model"]["init_args"]
    # measuring is for `test`: a model is used without the weights that its metrics need
    arguments["quality"] = {"class_path": "EditQuality", "init_args": {"feature_extractor": None, "lpips": False}}
    if "base" in arguments and not Path(arguments["base"]).exists():
        arguments["base"] = str(run.parent / Path(arguments["base"]).name)  # moved together with this run
    state = torch.load(weights_file, map_location="cpu", weights_only=True)
    if "text_encoder" in arguments:
        arguments["text_encoder"] = without_text_encoder(arguments["text_encoder"], state) or arguments["text_encoder"]
    if "allocated_ranks" in state:
        arguments["ranks"] = state["allocated_ranks"]  # a rank file may be gone
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    with constructor_errors_unwrapped():
        module = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    if not isinstance(module, modules.PairedGAN):
        raise ValueError(
            f"run {run} holds a {type(module).__name__}, which edits no photos; give a base or adapter run"
        )
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])
    return module.eval()


def load_base(base: Path) -> "PairedGAN":
    """Load a run that others can start from: ``load_run``, but of a whole generator, its masks baked into its weights.

    Raises:
        FileNotFoundError: As ``load_run``.
        ValueError: As ``load_run``, or the run holds an adapter.
    """
    trained = load_run(base)
    if isinstance(trained.generator, PeftModel):
        raise ValueError(f"{base} holds an adapter; give its base instead, which its config.yaml names")
    for network in (trained.generator, trained.generator_ema):
        bake_masks(network)
    return trained


def load_concepts(base: Path, adapters: Iterable[Path]) -> SwitchableGenerator:
    """Load a base once, with adapters to switch between: ``model.use("watercolour")``, then ``model(photo)``.

    Args:
        base: Run folder of the base; its own concepts can be used, too.
        adapters: Run folders of adapters, or what their ``adapter/`` holds.

    Returns:
        The generator in eval mode on the CPU, no concept in use yet.

    Raises:
        FileNotFoundError: A folder is no run or holds no adapter.
        ValueError: An adapter belongs to another base or text encoder, or two are for one concept.
    """
    trained = load_base(base)
    tokens = {
        concept: trained.text_encoder_ema([concept], [trained.prompts[concept]])[0] for concept in trained.concepts
    }
    model = SwitchableGenerator(trained.generator_ema, tokens, trained.text_encoder.identity)
    for folder in adapters:
        model.add(folder / "adapter" if (folder / "adapter").is_dir() else folder)
    return model.eval()
