r"""Does a killed training end as if it had never been? `kill -9` at random moments of fit, adapt, search and sweep.

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.resilience --pairs PAIRS --out FOLDER
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from benchmarks.runs import command_block, commit

BASE_STYLE, STYLE, IMAGES, EVERY = "style_00", "style_20", 240, 10
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


class Benchmark:
    """Commands, each run whole once and then killed again and again."""

    def __init__(self, pairs: Path, out: Path, moments: int) -> None:
        self.pairs, self.out, self.moments = pairs, out, moments
        out.mkdir(parents=True, exist_ok=True)

    def data(self, style: str) -> tuple[str, ...]:
        return (f"--data.root={self.pairs}", "--data.size=64", f"--data.concepts=[{style}]", *QUIET)

    def fit(self, folder: Path) -> list[str]:
        return [
            "fit", "-c", "configs/base_gan/small.yaml", *self.data(BASE_STYLE), f"--budget.images={IMAGES}",
            f"--trainer.val_check_interval={EVERY}", f"--trainer.default_root_dir={folder}", "--ckpt_path=last",
        ]  # fmt: skip

    def adapt(self, folder: Path) -> list[str]:
        options = [*self.data(STYLE)[2:], "--early_stopping=null", f"--budget.images={IMAGES}"]
        options += [f"--trainer.val_check_interval={EVERY}"]
        return [
            "adapt", f"--base={self.out / 'base'}", f"--pairs={self.pairs}", f"--concepts={STYLE}", f"--out={folder}",
            f"--fit_options={options}",
        ]  # fmt: skip

    def search(self, folder: Path) -> list[str]:
        return [
            "fit", "-c", "configs/lora_adaptation/rank_search.yaml", *self.data(STYLE), f"--budget.images={IMAGES}",
            f"--model.base={self.out / 'base'}", "--early_stopping=null", f"--trainer.val_check_interval={EVERY}",
            f"--trainer.default_root_dir={folder}", "--ckpt_path=last",
        ]  # fmt: skip

    def sweep(self, folder: Path) -> list[str]:
        file = self.out / "sweep.yaml"
        command = ["${env}", "pocketgan", *self.fit(folder)[:-2], "${args}"]
        parameters = {"model.init_args.reconstruction_weight": {"values": [10.0, 30.0]}}
        metric = {"name": "val/reconstruction", "goal": "minimize"}
        file.write_text(
            yaml.safe_dump({"method": "grid", "metric": metric, "command": command, "parameters": parameters})
        )
        return ["sweep", str(file), "--local", f"--out={folder}"]

    def start(self, words: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("a") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "pocketgan", *words], stdout=file, stderr=file, start_new_session=True
            )

    def row(self, name: str, words: Callable[[Path], list[str]], draw: random.Random) -> str:
        whole, log = self.out / name / "whole", self.out / f"{name}.log"
        shutil.rmtree(self.out / name, ignore_errors=True)
        begun = time.monotonic()
        assert self.start(words(whole), log).wait() == 0, f"see {log}"
        seconds = time.monotonic() - begun
        expected, equal = weights(whole), 0
        for moment in range(self.moments):
            folder = self.out / name / f"killed_{moment}"
            process = self.start(words(folder), log)
            time.sleep(draw.uniform(0, seconds))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert self.start(words(folder), log).wait() == 0, f"see {log}"
            found = weights(folder)
            equal += found.keys() == expected.keys() and all(
                torch.equal(value, expected[key]) for key, value in found.items()
            )
            shutil.rmtree(folder)
        return f"| {name} | {seconds:.0f} | {self.moments} | {equal} |"

    def run(self, seed: int) -> str:
        """Train, kill, compare; the committed Markdown."""
        draw = random.Random(seed)
        if not (self.out / "base" / "checkpoints" / "last.ckpt").is_file():
            assert self.start(self.fit(self.out / "base"), self.out / "base.log").wait() == 0
        rows = [
            self.row(name, words, draw)
            for name, words in (
                ("fit", self.fit),
                ("adapt", self.adapt),
                ("search", self.search),
                ("sweep", self.sweep),
            )
        ]
        return (
            "# Does a killed training end as if it had never been killed?\n\n"
            "`kill -9` of the whole process group at a moment drawn evenly over its length "
            f"(seed {seed}), then the same command line once more. All weights of all last checkpoints are compared "
            f"bit for bit with those of a run that was left alone. 64 px, width 16, {IMAGES} images, a checkpoint "
            f"every {EVERY} batches, 1 thread. Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
            "| command | seconds left alone | killed | equal, all bits |\n|---|---|---|---|\n" + "\n".join(rows)
        )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of every last checkpoint below a folder, by path."""
    found = {}
    for file in sorted(folder.rglob("last.ckpt")):
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        found |= {f"{file.relative_to(folder)}:{name}": value for name, value in state.items()}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(Benchmark(options.pairs.resolve(), options.out.resolve(), options.moments).run(options.seed))
