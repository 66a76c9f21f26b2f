"""Runs that several benchmarks share: trained once, measured on the test photos, found again when started again."""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pocketgan.run_folder import adapter_bytes, last_figures

SPLIT, BATCH = "[0.6,0.2,0.2]", 4
# of all trainings here, whatever a YAML says: 64 px, chosen by a short trial of the base
SETTING = (
    f"--data.batch_size={BATCH}",
    "--data.size=64",
    f"--data.split={SPLIT}",
    "--model.reconstruction_weight=30",
    "--model.discriminator_optimizer.lr=1e-3",
    "--trainer.precision=bf16-mixed",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
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
    """

    folder: Path
    config: str
    arguments: tuple[str, ...]
    images: tuple[int, ...]
    may_stop_early: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all image counts are tested."""
        return (self.folder / "result.json").exists() and len(self.result()) == len(self.images)

    def result(self) -> list[dict[str, float]]:
        """One row of figures for each image count."""
        rows: list[dict[str, float]] = json.loads((self.folder / "result.json").read_text())
        return rows


def train(run: Run) -> None:
    """Train and test one run in this process; stages that are done are not done again."""
    import torch

    from lightning_modules import PairedGAN
    from pocketgan.cli import main

    file = run.folder / "result.json"
    rows: list[dict[str, float]] = run.result() if file.exists() else []
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds: list[float] = []
    step = PairedGAN.training_step

    def timed(self: PairedGAN, batch: dict[str, Any], batch_index: int) -> None:
        begun = time.perf_counter()
        step(self, batch, batch_index)
        seconds.append(time.perf_counter() - begun)

    for images in run.images[len(rows) :]:
        if not rows:
            shutil.rmtree(run.folder, ignore_errors=True)  # broken off before its first result
        seconds.clear()
        PairedGAN.training_step = timed  # type: ignore[method-assign]
        try:
            main(
                [
                    "fit",
                    f"-c={run.config}",
                    *SETTING,
                    *run.arguments,
                    f"--budget.images={images}",
                    f"--trainer.val_check_interval={(images - (rows[-1]['images'] if rows else 0)) / BATCH:.0f}",
                    f"--trainer.default_root_dir={run.folder}",
                    *(["--ckpt_path=last"] if rows else []),
                ]
            )
        finally:
            PairedGAN.training_step = step  # type: ignore[method-assign]
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

    from lightning_modules import LoRAAdaptation, load_run

    model = load_run(folder)
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


def train_all(runs: Iterable[Run], processes: int) -> None:
    """Train runs side by side, each process on its share of the cores."""
    waiting = [run for run in dict.fromkeys(runs) if not run.is_done]
    threads = max((os.cpu_count() or 1) // processes, 1)
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
