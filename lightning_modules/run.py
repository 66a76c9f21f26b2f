"""A run folder turned back into its model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from peft import PeftModel
from torch import nn

from lightning_modules.run_state import read_checkpoint, read_config
from pocketgan.adapters import SwitchableGenerator
from pocketgan.compression import bake_masks

if TYPE_CHECKING:
    from lightning_modules.paired_gan import PairedGAN
    from lightning_modules.unpaired_gan import UnpairedGAN

_Module = TypeVar("_Module", bound=LightningModule)


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


def load_module(run: Path, checkpoint: str = "last.ckpt") -> LightningModule:
    """Load a trained GAN of any kind: ``config.yaml`` says what it is, ``checkpoints/`` holds its weights.

    Args:
        run: Run folder of a ``fit``.
        checkpoint: File in ``checkpoints/``.

    Returns:
        The module in eval mode on the CPU.

    Raises:
        FileNotFoundError: The folder is no run, or the run has no such checkpoint yet.
        ValueError: The checkpoint is of another architecture than config.yaml says.
    """
    config = read_config(run)
    arguments = config["model"]["init_args"]
    if "quality" in arguments:
        # measuring is for `test`: a model is used without the weights that its metrics need
        left_out = {"feature_extractor": None, "lpips": False}
        measured = arguments["quality"].setdefault("init_args", {})
        measured.update({name: value for name, value in left_out.items() if name in measured})
    if "base" in arguments:
        arguments["base"] = str(_base_of(run, arguments))
    state = read_checkpoint(run, checkpoint)
    if "text_encoder" in arguments:
        arguments["text_encoder"] = without_text_encoder(arguments["text_encoder"], state) or arguments["text_encoder"]
    if "allocated_ranks" in state:
        arguments["ranks"] = state["allocated_ranks"]  # a rank file may be gone
    module: LightningModule = _instantiated(LightningModule, config["model"])
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])
    return module.eval()


def _base_of(run: Path, arguments: dict[str, Any]) -> Path:
    """The base's folder where a run's config says, or beside the run, with which it was moved."""
    base = Path(arguments["base"])
    return base if base.exists() else run.parent / base.name


def _instantiated(cls: type, config: dict[str, Any]) -> Any:
    """An object of a config's class, which is a subclass of ``cls``."""
    import lightning_modules  # noqa: F401  short class names are found among imported classes

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(cls, "made", required=True)
    with constructor_errors_unwrapped():
        return parser.instantiate(parser.parse_object({"made": config})).made


def fresh_discriminator(run: Path) -> nn.Module:
    """A run's discriminator as it was before any training: its class and sizes, random weights.

    Raises:
        FileNotFoundError: The folder, or the base that it names, is no run.
    """
    arguments = read_config(run)["model"]["init_args"]
    while "discriminator" not in arguments:  # an adapter has its base's
        run = _base_of(run, arguments)
        arguments = read_config(run)["model"]["init_args"]
    discriminator: nn.Module = _instantiated(nn.Module, arguments["discriminator"])
    return discriminator


def load_run(run: Path, checkpoint: str = "last.ckpt") -> "PairedGAN":
    """Load a trained base, adapter or student: ``load_module``, but of what edits photos.

    Raises:
        FileNotFoundError: As ``load_module``.
        ValueError: As ``load_module``, or the run is of another kind.
    """
    import lightning_modules as modules

    return _loaded_as(modules.PairedGAN, run, checkpoint, "which edits no photos; give a base or adapter run")


def load_unpaired_run(run: Path, checkpoint: str = "last.ckpt") -> "UnpairedGAN":
    """Load a trained GAN on single images: ``load_module``, but of what makes images of noise.

    Raises:
        FileNotFoundError: As ``load_module``.
        ValueError: As ``load_module``, or the run is of another kind.
    """
    import lightning_modules as modules

    return _loaded_as(modules.UnpairedGAN, run, checkpoint, "which makes no images of noise; give an UnpairedGAN's run")


def _loaded_as(kind: type[_Module], run: Path, checkpoint: str, refusal: str) -> _Module:
    module = load_module(run, checkpoint)
    if not isinstance(module, kind):
        raise ValueError(f"run {run} holds a {type(module).__name__}, {refusal}")
    return module


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
