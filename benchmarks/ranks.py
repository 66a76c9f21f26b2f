r"""Do two processes learn what one does, from the same global batch, and do they synthesise pairs faster?

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.ranks --pairs PAIRS --photos PHOTOS --out FOLDER
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.runs import command_block, commit, mean_and_spread
from pocketgan.pair_set import read_pairs

STEPS, BATCH, PHOTOS = 50, 4, 96
SHOWN_STEPS = (1, 10, 25, STEPS)
LOSSES = ("train/reconstruction", "train/adversarial", "train/discriminator")


class RankRecord(Callback):
    """Leaves in the run folder each rank's losses of each step, averaged over the ranks, and its last weights."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Give the step images of the module's precision: they are made of bytes after Lightning's conversion."""
        batch |= {name: batch[name].to(pl_module.dtype) for name in ("photo", "edit")}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Average the step's losses: each rank's is of its share of the batch."""
        found = {name: trainer.callback_metrics[name].double() for name in LOSSES}
        mean = {name: trainer.strategy.reduce(value, reduce_op="mean") for name, value in found.items()}
        self.losses.append({name: float(value) for name, value in mean.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        kept = {"losses": self.losses, "weights": pl_module.state_dict()}
        torch.save(kept, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def command(words: list[str], ranks: int, strategy: str) -> float:
    """Run pocketgan with a thread a rank; its seconds."""
    options = [f"--trainer.devices={ranks}", *([f"--trainer.strategy={strategy}"] if ranks > 1 else [])]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pocketgan", *words, *options], check=True, stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return time.perf_counter() - begun


def trained(pairs: Path, folder: Path, ranks: int, precision: str) -> list[dict[str, Any]]:
    """What each rank of a base's first steps recorded."""
    shutil.rmtree(folder, ignore_errors=True)
    words = [
        "fit", "-c", "configs/base_gan/small.yaml", f"--data.root={pairs}", "--data.size=64",
        f"--data.batch_size={BATCH}", f"--budget.images={STEPS * BATCH}", f"--trainer.default_root_dir={folder}",
        f"--trainer.precision={precision}", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
        "--trainer.callbacks+=benchmarks.ranks.RankRecord", "--trainer.limit_val_batches=0",
    ]  # fmt: skip
    command(words, ranks, "ddp_find_unused_parameters_true")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def learning(pairs: Path, out: Path) -> list[str]:
    """Rows: how far two processes' losses are from one's, and their weights from each other's."""
    rows = []
    for precision in ("32-true", "64-true"):
        (one,) = trained(pairs, out / f"one_{precision}", 1, precision)
        two, other = trained(pairs, out / f"two_{precision}", 2, precision)
        equal = all(torch.equal(value, other["weights"][name]) for name, value in two["weights"].items())
        far = [
            max(abs(mine[name] - its[name]) for name in LOSSES)
            for mine, its in zip(one["losses"], two["losses"], strict=True)
        ]
        cells = " | ".join(f"{max(far[:step]):.1e}" for step in SHOWN_STEPS)
        rows.append(f"| {precision} | {'yes' if equal else 'no'} | {cells} |")
    return rows


def synthesis(photos: Path, out: Path, repetitions: int) -> list[str]:
    """Rows: seconds of one and two processes for the same pairs, start-up included."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repetitions):
        for ranks, found in seconds.items():
            folder = out / f"pairs_{ranks}"
            shutil.rmtree(folder, ignore_errors=True)
            words = [
                "predict", "-c", "configs/synthesize/style_transfer.yaml", f"--data.root={photos}",
                f"--data.limit={PHOTOS}", "--model.teacher.style=[0,6,12,20]", f"--trainer.default_root_dir={folder}",
                "--trainer.accelerator=cpu",
            ]  # fmt: skip
            found.append(command(words, ranks, "ddp"))
            assert len(read_pairs(folder)) == 4 * PHOTOS
    faster = [one / two for one, two in zip(*seconds.values(), strict=True)]
    return [
        f"| 1 | {statistics.median(seconds[1]):.0f} | |",
        f"| 2 | {statistics.median(seconds[2]):.0f} | {mean_and_spread(faster, 2)} |",
    ]


def page(pairs: Path, photos: Path, out: Path, repetitions: int) -> str:
    """Train, synthesise, compare; the committed Markdown."""
    learned = learning(pairs, out)
    made = synthesis(photos, out, repetitions)
    heads = " | ".join(f"up to step {step}" for step in SHOWN_STEPS)
    return (
        "# Do two processes learn what one does, and synthesise faster?\n\n"
        f"Two gloo processes of one thread each on 2 CPU cores. Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
        f"## {STEPS} steps of a base\n"
        f"configs/base_gan/small.yaml, 64 px, a global batch of {BATCH}, seed 0: the largest difference of a loss "
        "(reconstruction, adversarial, discriminator; the mean over ranks) to one process's, and whether the two "
        "ranks' weights are the same bits at the end.\n\n"
        f"| precision | ranks equal | {heads} |\n|---|---|{'---|' * len(SHOWN_STEPS)}\n" + "\n".join(learned) + "\n\n"
        "## Pairs\n"
        f"The embedded teacher, {PHOTOS} photos, 4 styles, whole commands with their start; {repetitions} "
        "repetitions in turn.\n\n| processes | seconds, median | times faster |\n|---|---|---|\n" + "\n".join(made)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    print(page(options.pairs.resolve(), options.photos.resolve(), options.out.resolve(), options.repetitions))
