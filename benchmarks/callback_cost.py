r"""What do the callbacks and loggers that come with every run cost, as a share of the training's time?

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.callback_cost --pairs PAIRS
"""

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops import _EvaluationLoop

from benchmarks.runs import command_block, commit, mean_and_spread
from callbacks import (
    ImageBudget,
    ImageQuality,
    MetricsCSV,
    RandomState,
    Requeue,
    RunEnd,
    RunMirror,
    SampleGrid,
    SaveRunConfig,
    ThroughputMonitor,
    TrainingAlarm,
    WandbRunLogger,
)
from callbacks.run_loggers import TensorBoardRunLogger
from pocketgan.cli import main

IMAGES, LOOP, VALIDATIONS = 2_800, "the loop", "validations"
TIMED = (
    Requeue,
    RunEnd,
    RunMirror,
    SaveRunConfig,
    ImageBudget,
    ImageQuality,
    RandomState,
    ThroughputMonitor,
    TrainingAlarm,
    SampleGrid,
    MetricsCSV,
    TensorBoardRunLogger,
    WandbRunLogger,
)
LOGGING = ("log_metrics", "log_hyperparams", "log_pictures", "save")


class Stopwatch:
    """Seconds of calls by what they are called, without those of calls within them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, on the clock."""

        @functools.wraps(call)
        def on_the_clock(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took, within = time.perf_counter() - begun, self._within.pop()
                if self._within or name == LOOP:  # what is outside of the loop is no cost of its steps
                    self.seconds[name] += took - within
                if self._within:
                    self._within[-1] += took

        return on_the_clock


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Hooks and logging calls within the fit's loop, and the loop, on the clock."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "_run_stage", watch.timed(LOOP, Trainer._run_stage)))
        stack.enter_context(patch.object(_EvaluationLoop, "run", watch.timed(VALIDATIONS, _EvaluationLoop.run)))
        for cls in TIMED:
            own = {name for name in dir(cls) if getattr(cls, name) is not getattr(Callback, name, None)}
            for name in {name for name in own if name.startswith("on_")} | own & {*LOGGING}:
                stack.enter_context(patch.object(cls, name, watch.timed(cls.__name__, getattr(cls, name))))
        yield


def shares(pairs: Path, size: int, folder: Path) -> dict[str, float]:
    """What each callback and logger takes, in per cent of a fit's loop without its validations' own work."""
    watch = Stopwatch()
    words = [
        "fit", "-c", "configs/base_gan/small.yaml", f"--data.root={pairs}", f"--data.size={size}",
        f"--budget.images={IMAGES}", f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--logging.wandb=offline", "--logging.tensorboard=true",
    ]  # fmt: skip
    with watched(watch):
        main(words)
    del watch.seconds[VALIDATIONS]
    whole = sum(watch.seconds.values())
    return {name: 100 * seconds / whole for name, seconds in watch.seconds.items() if name != LOOP} | {
        "all of them": 100 * (1 - watch.seconds[LOOP] / whole)
    }


def page(pairs: Path, size: int, repetitions: int) -> str:
    """Measure; the committed Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        found = [shares(pairs, size, Path(folder) / str(turn)) for turn in range(repetitions)]
    names = [*(cls.__name__ for cls in TIMED), "all of them"]
    rows = [f"| {name} | {mean_and_spread([one.get(name, 0.0) for one in found], 2)} % |" for name in names]
    return (
        "# What do the callbacks and loggers of every run cost?\n\n"
        f"configs/base_gan/small.yaml at {size} px, {IMAGES:,} images in batches of 4, a validation every 350 "
        "batches and at the end, W&B offline and TensorBoard on. Each call of a hook or a logger is on the clock, "
        "without the calls within it; share of the fit's loop less the metrics of its validations, "
        f"{repetitions} repetitions, mean ± standard deviation. What W&B does in a process of its own is not in it. "
        f"Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
        "| callback or logger | share of the time |\n|---|---|\n" + "\n".join(rows)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(page(options.pairs.resolve(), options.size, options.repetitions))
