"""The command line. Heavy libraries are imported where they are needed, so that ``pocketgan --help`` is quick."""

import functools
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin

from pocketgan.commands import (
    adapt,
    config,
    edit,
    export,
    pairs_convert,
    pairs_import,
    pairs_inspect,
    quickstart,
    report,
    select_concepts,
    select_photos,
    serve,
    sweep,
)

LIGHTNING_COMMANDS = {
    "fit": "Train a base or an adapter from YAML files.",
    "validate": "Measure a trained run on its validation photos.",
    "test": "Measure a trained run on its test photos.",
    "predict": "Let a teacher edit photos and write them as a pair set.",
}

DRY_RUNS = {
    "fit": "Say what the training would take, by a timed sample of it; write nothing.",
    "predict": "Say how many pairs, megabytes and hours it would take, by a timed sample; write nothing.",
}


def _ignore_upstream_warnings() -> None:
    """Keep from the user what only Lightning could mend."""
    from jsonargparse._deprecated import JsonargparseDeprecationWarning

    # LightningCLI 2.6 calls jsonargparse by an old name
    warnings.filterwarnings("ignore", category=JsonargparseDeprecationWarning)
    # tests and quickstart call main(args) from Python on purpose
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # averages, teachers and feature networks are in eval mode on purpose
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # SaveRunConfig refuses a folder that another run would overwrite; a resumed one is meant to be there
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # PairedImages starts its passes at the images seen
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # a small set has fewer batches in a pass than lie between two logged ones
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # the summary counts bytes as of float32, which the weights are
    warnings.filterwarnings("ignore", message="Precision bf16-mixed is not supported by the model summary")
    # an advertisement
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in str(record.msg)
    )
    # SaveRunConfig says it, without a hint that is wrong here
    warnings.filterwarnings("ignore", message='.*ckpt_path="last". is set, but there is no last checkpoint')
    # a run folder may be moved
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # diffusers' blocks add what their parts return out of place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # Lightning's all_gather
    warnings.filterwarnings("ignore", message="torch.distributed.nn.functional.all_gather is deprecated")
    # batches come from a memory map: workers cost more than they bring on a few cores
    warnings.filterwarnings("ignore", message=".*does not have many workers")


def _keep_null_inside_nested_classes() -> None:
    """Let ``--model.teacher.scheduler null`` be no scheduler.

    jsonargparse 4.53 hands an option of a class inside a class on as the text ``--scheduler=None``, which is a word
    like any other to the inner parser. No issue is known upstream; a test fails once it is mended.
    """
    from jsonargparse import Namespace, _typehints
    from jsonargparse._util import NestedArg

    adapt = _typehints.adapt_class_type
    if hasattr(adapt, "__wrapped__"):
        return

    @functools.wraps(adapt)
    def adapt_with_null(value: Any, *args: Any, **kwargs: Any) -> Any:
        init_args = value.get("init_args") if isinstance(value, Namespace) else None
        if isinstance(init_args, NestedArg) and init_args.val is None:
            value["init_args"] = init_args._replace(val="null")
        return adapt(value, *args, **kwargs)

    _typehints.adapt_class_type = adapt_with_null


def run_lightning(args: list[str] | None) -> None:
    """Hand ``fit``, ``validate``, ``test`` and ``predict`` to LightningCLI."""
    import torch
    from jsonargparse import Namespace, dict_to_namespace, set_parsing_settings
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    # short class names in YAMLs are found among imported classes
    import datamodules  # noqa: F401
    import lightning_modules  # noqa: F401
    import pocketgan.compression
    import pocketgan.gates
    import pocketgan.networks
    import pocketgan.teachers  # noqa: F401
    from callbacks import (
        ClipScoreEarlyStopping,
        FitEstimate,
        ImageBudget,
        ImageQuality,
        LossTrackingEarlyStopping,
        PairEstimate,
        PairWriter,
        RandomState,
        Requeue,
        RunArtifacts,
        RunEnd,
        RunLoggers,
        RunMirror,
        SampleGrid,
        SaveRunConfig,
        ThroughputMonitor,
        TrainingAlarm,
    )
    from callbacks.pair_estimate import SAMPLE_BATCHES
    from callbacks.requeue import handler_restored
    from callbacks.trainer_state import callback_of
    from lightning_modules.run import constructor_errors_unwrapped, without_text_encoder

    _ignore_upstream_warnings()
    _keep_null_inside_nested_classes()

    class PocketganCLI(LightningCLI):
        def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
            # the one hook that knows the subcommand
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            if subcommand in DRY_RUNS:
                parser.add_argument("--dry-run", action="store_true", help=DRY_RUNS[subcommand])
            return parser

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            # one last.ckpt, replaced at each validation: a second version beside it would leave readers with the first
            parser.set_defaults(
                {
                    "checkpoint.save_last": True,
                    "checkpoint.enable_version_counter": False,
                    "checkpoint.auto_insert_metric_name": False,
                }
            )
            parser.add_lightning_class_args(ImageBudget, "budget")
            parser.add_lightning_class_args(ImageQuality, "image_quality")
            parser.add_lightning_class_args(SampleGrid, "samples")
            parser.add_lightning_class_args(TrainingAlarm, "alarm")
            parser.add_lightning_class_args(RunMirror, "mirror")
            parser.add_class_arguments(RunLoggers, "logging")
            # a group, so that one of its numbers can be changed and it can be switched off without the other callbacks
            parser.add_subclass_arguments(
                (LossTrackingEarlyStopping, ClipScoreEarlyStopping, EarlyStopping),
                "early_stopping",
                help="What may end a fit before its budget.",
            )

        def before_instantiate_classes(self) -> None:
            config = self.config[str(self.subcommand)]
            if config.get("dry_run") and self.subcommand == "fit":
                config.ckpt_path, config.checkpoint.save_last, config.checkpoint.save_top_k = None, False, 0
                config.mirror.url = None
            if "://" in str(config.checkpoint.dirpath):
                raise ValueError(
                    f"checkpoint.dirpath is {config.checkpoint.dirpath}; checkpoints are written to a disk, and "
                    "--mirror.url keeps a copy of the run folder there"
                )
            if self.subcommand == "fit" and os.environ.get("WANDB_SWEEP_ID"):
                # a sweep's agent runs one command line again and again: a folder for each of its runs
                root = Path(config.trainer.default_root_dir or ".")
                config.trainer.default_root_dir = str(root / os.environ["WANDB_RUN_ID"])
            if self.subcommand in {"validate", "test"} and config.ckpt_path is None:
                # otherwise Lightning would measure weights that no training has touched
                config.ckpt_path = str(Path(config.trainer.default_root_dir or ".") / "checkpoints" / "last.ckpt")
                if not Path(config.ckpt_path).is_file():
                    raise FileNotFoundError(
                        f"{config.ckpt_path} is missing; `fit` this config first or give --ckpt_path"
                    )
            if self.subcommand in {"validate", "test"}:
                self.leave_out_text_encoder(config)

        def before_fit(self) -> None:
            if (mirror := callback_of(self.trainer, RunMirror)) is not None:
                mirror.fetch(self.trainer, self.config[str(self.subcommand)].ckpt_path)
            if self.trainer.is_global_zero and (saver := callback_of(self.trainer, SaveRunConfig)) is not None:
                saver.claim(self.trainer)

        def leave_out_text_encoder(self, config: Namespace) -> None:
            checkpoint, arguments = Path(config.ckpt_path), config.model.init_args
            if "text_encoder" in arguments and checkpoint.is_file():
                state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
                stored = without_text_encoder(arguments.text_encoder, state)
                if stored is not None:
                    arguments.text_encoder = dict_to_namespace(stored)

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer = self._get(self.config_init, "trainer")
            artifacts: list[Any] = []
            if self.subcommand != "predict" and trainer.logger is not False:
                given = [] if trainer.logger is None or trainer.logger is True else trainer.logger
                others = given if isinstance(given, list) else [given]
                logging = self._get(self.config_init, "logging")
                logging.check()
                artifacts = [RunArtifacts()] if logging.artifacts and self.subcommand == "fit" else []
                kwargs["logger"] = [*logging.loggers(Path(trainer.default_root_dir or ".")), *others]
            plugins = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]
            is_chosen = any(isinstance(each, ClusterEnvironment) for each in plugins)
            if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not is_chosen:
                # Requeue saves between two batches, Lightning's own handler anywhere in a step
                kwargs["plugins"] = [*filter(None, plugins), SLURMEnvironment(auto_requeue=False)]
            callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
            early_stopping = self._get(self.config_init, "early_stopping")
            # Lightning refuses the YAMLs' bar beside enable_progress_bar=false
            refused = ProgressBar if trainer.enable_progress_bar is False else ()
            callbacks = [
                each for each in [*callbacks, early_stopping, *artifacts] if each and not isinstance(each, refused)
            ]
            dry_run = self._get(self.config_init, "dry_run")
            if dry_run and self.subcommand == "fit":
                # the YAML's own callbacks search, write and prune
                kwargs |= {"logger": False, "limit_val_batches": 0}
                self.save_config_callback, callbacks = None, [FitEstimate()]
            elif dry_run:
                kwargs |= {"logger": False, "limit_predict_batches": SAMPLE_BATCHES}
                callbacks = [PairEstimate.of(each) if isinstance(each, PairWriter) else each for each in callbacks]
            if self.subcommand == "fit":
                # Requeue first: what it saves is of the batches before, which other callbacks have not begun to count
                callbacks = [Requeue(), *([] if dry_run else [RunEnd()]), *callbacks]
            kwargs["callbacks"] = callbacks
            return super().instantiate_trainer(**kwargs)

    # interpolation that the command line and later files can override (Lightning issue 13607)
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    with constructor_errors_unwrapped(), handler_restored():
        PocketganCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveRunConfig,
            trainer_defaults={"callbacks": [RandomState(), ThroughputMonitor()]},
            parser_kwargs={"parser_mode": "omegaconf+"},
            args=args,
        )


COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "adapt": adapt,
    "config": config,
    "edit": edit,
    "export": export,
    "pairs convert": pairs_convert,
    "pairs import": pairs_import,
    "pairs inspect": pairs_inspect,
    "report": report,
    "select concepts": select_concepts,
    "select photos": select_photos,
    "serve": serve,
    "sweep": sweep,
}


def run_function(function: Callable[..., None], args: list[str]) -> None:
    """Run a typed function as a command.

    A first parameter without default is positional unless it is keyword-only, a bool is a switch, the others are
    options.
    """
    import docstring_parser
    from jsonargparse import ArgumentParser

    name = function.__name__.replace("_", " ")
    described = docstring_parser.parse(inspect.getdoc(function) or "")
    help_of = {parameter.arg_name: parameter.description for parameter in described.params}
    parser = ArgumentParser(prog=f"pocketgan {name}", description=described.short_description)
    by_hand: set[str | int] = set()
    for parameter in inspect.signature(function).parameters.values():
        required = parameter.default is parameter.empty
        if required and not by_hand and parameter.kind is not parameter.KEYWORD_ONLY:
            several = "+" if get_origin(parameter.annotation) is list else None
            parser.add_argument(parameter.name, type=Path, nargs=several, help=help_of[parameter.name])
            by_hand.add(parameter.name)
        elif parameter.annotation is bool:
            parser.add_argument(f"--{parameter.name}", action="store_true", help=help_of[parameter.name])
            by_hand.add(parameter.name)
    parser.add_function_arguments(function, as_group=False, skip=by_hand)
    # --from-run is --from_run
    arguments = parser.parse_args(
        [re.sub(r"^--[\w-]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word) for word in args]
    )
    try:
        function(**vars(parser.instantiate(arguments)))
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # what users can mend
        if isinstance(error, RuntimeError) and not _is_refusal(error):
            raise
        # what went wrong is in the message; a traceback would only hide it
        raise SystemExit(f"pocketgan {name}: {error}") from error


def _is_refusal(error: BaseException) -> bool:
    """Whether our own code raised an error: its message says it all, where others' need their traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).parents[1]
    ours = [root / name for name in ("callbacks", "datamodules", "lightning_modules", "pocketgan")]
    return any(Path(frames[-1].filename).is_relative_to(folder) for folder in ours)


def _help(first: str = "") -> str:
    """List the commands, or those that begin with ``first``."""
    lines = {name: (inspect.getdoc(function) or "").split("\n")[0] for name, function in COMMANDS.items()}
    listed = "\n".join(
        f"  {name:<17}{line}" for name, line in {**LIGHTNING_COMMANDS, **lines}.items() if name.startswith(first)
    )
    usage = f"pocketgan {first}COMMAND"
    return f"usage: {usage} ...\n\n{listed}\n\n`{usage} --help` lists a command's options."


def main(args: list[str] | None = None) -> None:
    """Run one command line.

    Args:
        args: The words after the program's name; those of this process if None.

    Raises:
        SystemExit: The command is unknown, an option is wrong, or its input was refused; called from Python with
            ``args``, LightningCLI's commands raise the refusal itself.
    """
    words = sys.argv[1:] if args is None else args
    command = words[0] if words else "--help"
    if command in LIGHTNING_COMMANDS:
        try:
            run_lightning(args)
        except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
            if args is None and _is_refusal(error):
                raise SystemExit(f"pocketgan {command}: {error}") from error
            raise
    elif command in COMMANDS:
        run_function(COMMANDS[command], words[1:])
    elif " ".join(words[:2]) in COMMANDS:
        run_function(COMMANDS[" ".join(words[:2])], words[2:])
    elif any(name.startswith(f"{command} ") for name in COMMANDS):
        if words[1:2] in ([], ["-h"], ["--help"]):
            print(_help(f"{command} "))
        else:
            raise SystemExit(f"pocketgan: {command} {words[1]} is no command\n\n{_help(f'{command} ')}")
    elif command in {"-h", "--help"}:
        print(_help())
    else:
        raise SystemExit(f"pocketgan: {command} is no command\n\n{_help()}")
