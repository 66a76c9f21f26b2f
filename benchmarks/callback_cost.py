r"""What do the callbacks and loggers that come with every run cost, as a share of the training's time?

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.callback_cost --pairs PAIRS
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback, Trainer

from benchmarks.runs import command_block, commit, mean_and_spread
from callbacks import Requeue, SampleGrid, ThroughputMonitor, TrainingAlarm
from pocketgan.cli import main

IMAGES, WATCHERS = 2_800, (Requeue, SampleGrid, ThroughputMonitor, TrainingAlarm)
ARMS = {
    "without": (),
    "samples, alarm, speed, requeue": (),
    "and W&B offline, TensorBoard": ("--logging.wandb=offline", "--logging.tensorboard=true"),
}
BARE = next(iter(ARMS))


@contextmanager
def silent(classes: tuple[type[Callback], ...]) -> Iterator[None]:
    """Callbacks whose hooks during a training do nothing."""
    hooks = [name for name in vars(Callback) if name.startswith("on_") and "checkpoint" not in name]
    with ExitStack() as stack:
        for cls in classes:
            for name in hooks:
                if name in vars(cls):
                    stack.enter_context(patch.object(cls, name, getattr(Callback, name)))
        yield


def seconds(arm: str, pairs: Path, size: int, folder: Path) -> float:
    """Wall time of a fit's loop, validations included."""
    measured: list[float] = []
    stage = Trainer._run_stage

    def timed(self: Any) -> Any:
        begun = time.perf_counter()
        try:
            return stage(self)
        finally:
            measured.append(time.perf_counter() - begun)

    words = [
        "fit", "-c", "configs/base_gan/small.yaml", f"--data.root={pairs}", f"--data.size={size}",
        f"--budget.images={IMAGES}", f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", *ARMS[arm],
    ]  # fmt: skip
    with silent(WATCHERS if arm == BARE else ()), patch.object(Trainer, "_run_stage", timed):
        main(words)
    return measured[-1]


def page(pairs: Path, size: int, repetitions: int) -> str:
    """Measure the arms in turn; the committed Markdown."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repetitions):
            for place, arm in enumerate(ARMS):
                found[arm].append(seconds(arm, pairs, size, Path(folder) / f"{turn}_{place}"))
    rows = []
    for arm, values in found.items():
        shares = [100 * (one / bare - 1) for one, bare in zip(values, found[BARE], strict=True)]
        more = "" if arm == BARE else f"{mean_and_spread(shares, 1)} %"
        rows.append(f"| {arm} | {statistics.median(values):.1f} | {more} |")
    return (
        "# What do the callbacks and loggers of every run cost?\n\n"
        f"configs/base_gan/small.yaml at {size} px, {IMAGES:,} images in batches of 4, a validation every 350 "
        f"batches and at the end; the fit's loop with validations, {repetitions} repetitions, arms in turn, "
        f"differences to the first of the same turn: mean ± standard deviation. Commit {commit()}.\n\n"
        f"{command_block(__doc__)}\n\n"
        "| callbacks and loggers | seconds, median | more |\n|---|---|---|\n" + "\n".join(rows)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(page(options.pairs.resolve(), options.size, options.repetitions))
