"""How long does it take to change the concept of a base that is in memory, and what does a photo cost then?

python -m benchmarks.concept_switching
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel

from benchmarks.runs import command_block, commit
from pocketgan.adapters import SwitchableGenerator, add_lora, save_adapter
from pocketgan.networks import E2GANGenerator

RANKS = {"down": 2, "transformer_down": 8, "transformer": 2, "transformer_up": 8, "up": 16}
NAMES = ("one", "two", "three")


def trained_adapters(base: E2GANGenerator, folder: Path) -> None:
    """Write adapters with random deltas: speed does not depend on their values."""
    for name in NAMES:
        adapted = add_lora(copy.deepcopy(base), RANKS, ["stem", "head"])
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 1e-3)
        save_adapter(adapted, torch.randn(77, 768), folder / name, name)


def peft_model(base: E2GANGenerator, folder: Path) -> PeftModel:
    """The same adapters in PEFT's own multi-adapter model."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder / NAMES[0], adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    return model.eval()


def milliseconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begun)


@torch.no_grad()
def measure(width: int, size: int, turns: int) -> str:
    """Switch and edit by turns on every side; a table."""
    torch.manual_seed(0)
    base = E2GANGenerator(width, 768).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        trained_adapters(base, folder)
        ours = SwitchableGenerator(base)
        for name in NAMES:
            ours.add(folder / name)
        beside, merging = peft_model(base, folder), peft_model(base, folder)
        tokens = torch.randn(1, 77, 768)
        stored = sum(file.stat().st_size for file in (folder / NAMES[0]).glob("*.safetensors"))
        photo = torch.rand(1, 3, size, size) * 2 - 1

        def merge(name: str) -> None:
            merging.unmerge_adapter()
            merging.set_adapter(name)
            merging.merge_adapter()

        merging.merge_adapter()
        sides: dict[str, tuple[Callable[[str], object], Callable[[], object]]] = {
            "`SwitchableGenerator.use`": (ours.use, lambda: ours(photo)),
            "PEFT `set_adapter`, deltas beside the weights": (beside.set_adapter, lambda: beside(photo, tokens)),
            "PEFT unmerge, `set_adapter`, merge": (merge, lambda: merging(photo, tokens)),
        }
        times: dict[str, tuple[list[float], list[float]]] = {side: ([], []) for side in sides}
        for turn in range(turns + 3):
            for side, (switch, edit) in sides.items():
                switched = milliseconds(partial(switch, NAMES[turn % len(NAMES)]))
                edited = milliseconds(edit)
                if turn >= 3:
                    times[side][0].append(switched)
                    times[side][1].append(edited)
        drift: dict[str, list[float]] = {"ours": [], "PEFT": []}
        for name in NAMES:
            ours.use(name)
            merge(name)
            fresh = PeftModel.from_pretrained(copy.deepcopy(base), folder / name).merge_and_unload().eval()
            expected = fresh(photo, tokens)
            drift["ours"].append((ours.generator(photo, tokens) - expected).abs().max().item())
            drift["PEFT"].append((merging(photo, tokens) - expected).abs().max().item())
    parameters = sum(parameter.numel() for parameter in base.parameters())
    lines = [
        f"# How long does a change of concept take?\n\n{command_block(__doc__)}\n",
        f"Width {width} ({parameters:,} parameters), adapters of {stored / 1024:.0f} KiB with stem and head in full, "
        f"{turns} turns after 3 unmeasured ones, sides by turns in one run, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit()}.\n",
        f"| side | switch, median ms | p95 ms | one photo of {size} px, median ms |\n|---|---|---|---|",
    ]
    for side, (switched, edited) in times.items():
        lines.append(
            f"| {side} | {statistics.median(switched):.2f} | {statistics.quantiles(switched, n=20)[-1]:.2f} | "
            f"{statistics.median(edited):.0f} |"
        )
    lines.append(
        f"\nLargest difference of an edit from a fresh merge's after {turns + 3} switches: ours "
        f"{max(drift['ours']):.1e}, PEFT's merging and unmerging {max(drift['PEFT']):.1e}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    print(measure(options.width, options.size, options.turns))
