"""Runs that several benchmarks share: trained once, measured on the test photos, found again when started again."""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pocketgan.run_folder import adapter_bytes, last_figures

SPLIT, BATCH = "[0.6,0.2,0.2]", 4
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
# of all paired trainings here, whatever a YAML says: 64 px, chosen by a short trial of the base
SETTING = (
    f"--data.batch_size={BATCH}",
    "--data.size=64",
    f"--data.split={SPLIT}",
    "--model.reconstruction_weight=30",
    "--model.discriminator_optimizer.lr=1e-3",
    "--trainer.precision=bf16-mixed",
    *QUIET,
)


@dataclass(frozen=True)
class Run:
    """One training by the command line, tested at one or several image counts on its way.

    Attributes:
        folder: Run folder; ``result.json`` in it holds the figures of the image counts that are done.
        config: YAML.
        arguments: Further words of the command line.
        images: Ascending image counts at which it is tested; the last is its budget.
        may_stop_early: Whether a callback may end it before its budget.
        setting: What several runs share, before ``arguments``.
        batch: Images in a batch, as the setting says.
    """

    folder: Path
    config: str
    arguments: tuple[str, ...]
    images: tuple[int, ...]
    may_stop_early: bool = False
    setting: tuple[str, ...] = SETTING
    batch: int = BATCH

    @property
    def is_done(self) -> bool:
        """Whether all image counts are tested."""
        return (self.folder / "result.json").exists() and len(self.result()) == len(self.images)

    def result(self) -> list[dict[str, float]]:
        """One row of figures for each image count."""
        rows: list[dict[str, float]] = json.loads((self.folder / "result.json").read_text())
        return rows


@contextmanager
def step_seconds() -> Iterator[list[float]]:
    """The wall time of each training step of a GAN within, in the list that it gives."""
    from lightning_modules import PairedGAN, UnpairedGAN

    seconds: list[float] = []
    classes: tuple[Any, ...] = (PairedGAN, UnpairedGAN)
    steps = [cls.training_step for cls in classes]

    def timed(step: Any) -> Any:
        def training_step(self: Any, batch: dict[str, Any], batch_index: int) -> None:
            begun = time.perf_counter()
            step(self, batch, batch_index)
            seconds.append(time.perf_counter() - begun)

        return training_step

    try:
        for cls, step in zip(classes, steps, strict=True):
            cls.training_step = timed(step)
        yield seconds
    finally:
        for cls, step in zip(classes, steps, strict=True):
            cls.training_step = step


def train(run: Run) -> None:
    """Train and test one run in this process; stages that are done are not done again."""
    import torch

    from pocketgan.cli import main

    file = run.folder / "result.json"
    rows: list[dict[str, float]] = run.result() if file.exists() else []
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for images in run.images[len(rows) :]:
        if not rows:
            shutil.rmtree(run.folder, ignore_errors=True)  # broken off before its first result
        with step_seconds() as seconds:
            main(
                [
                    "fit",
                    f"-c={run.config}",
                    *run.setting,
                    *run.arguments,
                    f"--budget.images={images}",
                    f"--trainer.val_check_interval={(images - (rows[-1]['images'] if rows else 0)) / run.batch:.0f}",
                    f"--trainer.default_root_dir={run.folder}",
                    *(["--ckpt_path=last"] if rows else []),
                ]
            )
        main(["test", f"-c={run.folder}/config.yaml", "--trainer.enable_progress_bar=false"])
        row = {**last_figures(run.folder, "test"), "step_seconds": statistics.median(seconds)}
        row["seconds"] = sum(seconds) + (rows[-1]["seconds"] if rows else 0)
        if row["images"] != images and not run.may_stop_early:
            raise RuntimeError(f"{run.folder} was tested at {row['images']} images, not at {images}; delete it")
        rows.append({**row, **sizes(run.folder)})
        file.write_text(json.dumps(rows, indent=2))


def sizes(folder: Path) -> dict[str, float]:
    """Trainable parameters of the generator's side, and the bytes that a concept costs beside its base."""
    import torch

    from lightning_modules import LoRAAdaptation, UnpairedGAN
    from lightning_modules.run import load_module

    model: Any = load_module(folder)
    if isinstance(model, UnpairedGAN):
        weights = list(model.generator_ema.state_dict().values())
        trained = sum(weight.numel() for weight in model.generator.parameters())
        return {"parameters": trained, "bytes": sum(weight.numel() * weight.element_size() for weight in weights)}
    tokens = [tokens for name, tokens in model.text_encoder.named_parameters() if model.concepts[0] in name]
    if isinstance(model, LoRAAdaptation):
        # the adapter as it is stored is trainable where the module's own generator is
        trained = sum(
            tensor.numel()
            for name, tensor in model.adapter.named_parameters()
            if "lora_" in name or "modules_to_save" in name
        )
        return {"parameters": trained + sum(map(torch.numel, tokens)), "bytes": adapter_bytes(folder)}
    weights = [*model.generator_ema.state_dict().values(), *tokens]
    trained = sum(weight.numel() for weight in model.generator.parameters()) + sum(map(torch.numel, tokens))
    return {"parameters": trained, "bytes": sum(weight.numel() * weight.element_size() for weight in weights)}


def _worker(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def train_all(runs: Iterable[Run], processes: int, threads: int | None = None) -> None:
    """Train runs side by side, each process on its share of the cores, or on so many threads.

    Runs are begun in their order: with one process a run may start from one before it.
    """
    waiting = [run for run in dict.fromkeys(runs) if not run.is_done]
    threads = threads or max((os.cpu_count() or 1) // processes, 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before a worker imports torch
    with ProcessPoolExecutor(processes, get_context("spawn"), _worker, (threads,)) as pool:
        for number, _ in enumerate(pool.map(train, waiting), start=1):
            print(f"{time.strftime('%H:%M:%S')} {number}/{len(waiting)}", flush=True)


def commit() -> str:
    """This checkout's commit."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def command_block(docstring: str | None) -> str:
    """The commands in a benchmark's docstring, its second paragraph, as Markdown."""
    return "```bash\n" + (docstring or "").split("\n\n")[1].strip() + "\n```"


def mean_and_spread(values: list[float], digits: int = 4) -> str:
    """``mean ± standard deviation`` of at least two values."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def paired_difference(values: Sequence[float], others: Sequence[float], sign: int = 1, digits: int = 4) -> str:
    """``mean ± standard deviation (better/N)`` of values less others', pair by pair.

    Args:
        values: Figures of one method, one for each seed and concept.
        others: Figures of the method that it is compared with, in the same order.
        sign: 1 where less is better, -1 where more is.
        digits: Behind the point.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    better = sum(sign * difference < 0 for difference in differences)
    return f"{mean_and_spread(differences, digits)} ({better}/{len(differences)})"
