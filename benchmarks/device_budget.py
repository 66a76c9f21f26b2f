r"""The best network at 33, 20 and 10 ms, 256 px, ONNX Runtime on 2 threads, and what public generators take beside it.

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[4]' --data.root PHOTOS \
    --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.device_budget --pairs PAIRS --out FOLDER

A second start goes on where the first ended. Leave the machine alone meanwhile.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.pix2pix import ResNet9, UNet
from benchmarks.runs import Run, command_block, commit, train_all
from lightning_modules import load_run
from pocketgan.compression import GeneratorCost, KeptShare, LatencyTarget, layer_macs, parameter_count
from pocketgan.exporters import Latency, OnnxExporter, measure_latency
from pocketgan.run_folder import COMPRESSION_FILE

CONCEPT, SIZE, THREADS = "style_04", 256, 2
WIDE_IMAGES, MORE_IMAGES, FINE_TUNE_IMAGES = 4_800, 1_600, 2_400
COMPRESSION_IMAGES = MORE_IMAGES + FINE_TUNE_IMAGES
BUDGETS_MS = (33, 20, 10)
COLUMNS = ("reconstruction", "kid_lite0", "ssim")


class Benchmark:
    """A wide network, what it becomes at each budget, and the wide one trained on as long."""

    def __init__(self, pairs: Path, out: Path, multiple: int) -> None:
        self.pairs, self.out, self.multiple = pairs, out, multiple
        out.mkdir(parents=True, exist_ok=True)
        self.begun = out / "commit.txt"
        if not self.begun.exists():
            self.begun.write_text(commit())
        self.data = (
            "--seed_everything=0",
            f"--data.root={pairs}",
            f"--data.concepts=[{CONCEPT}]",
            f"--data.size={SIZE}",
        )

    def wide(self) -> Run:
        return Run(
            self.out / "wide",
            "configs/base_gan/small.yaml",
            (
                *self.data,
                "--model.generator.width=32",
                "--model.discriminator.width=32",
                "--model.generator.norm=BatchNorm",
                "--trainer.callbacks=null",
            ),
            (WIDE_IMAGES,),
        )

    def compression(self, name: str, rule: dict[str, object], images: int, *more: str) -> Run:
        return Run(
            self.out / name,
            "configs/channel_condensation/small.yaml",
            (
                *self.data,
                f"--model.base={self.wide().folder}",
                f"--model.condense_images={MORE_IMAGES}",
                "--model.concentration_weight=0",  # benchmarks/condensation.md
                f"--model.pruning={json.dumps(rule)}",
                f"--model.target.size={SIZE}",
                f"--model.target.threads={THREADS}",
                *more,
            ),
            (images,),
        )

    def first_stage(self) -> Run:
        """The wide network trained on, which all budgets go on from and which teaches them."""
        return self.compression("first_stage", self.budget(max(BUDGETS_MS)), MORE_IMAGES)

    def budget(self, milliseconds: int) -> dict[str, object]:
        return {
            "class_path": "LatencyBudget",
            "init_args": {"budget_ms": milliseconds, "multiple": self.multiple},
        }

    def within(self, milliseconds: int) -> Run:
        return self._second_stage(f"within_{milliseconds}", self.budget(milliseconds))

    def trained_on(self) -> Run:
        return self._second_stage(
            "trained_on", {"class_path": "KeptShare", "init_args": {"share": 1.0}}, "--model.teacher=null"
        )

    def _second_stage(self, name: str, rule: dict[str, object], *more: str) -> Run:
        start = f"--ckpt_path={self.first_stage().folder}/checkpoints/last.ckpt"
        return self.compression(name, rule, COMPRESSION_IMAGES, start, *more)

    def narrowest_ms(self) -> float:
        """What the narrowest network that the rule allows takes."""
        generator = load_run(self.wide().folder).generator_ema
        target = LatencyTarget(threads=THREADS, size=SIZE)
        cost = GeneratorCost(target, torch.zeros(1, 1, generator.token_size), generator.size_divisor)
        graph = cost.graph(generator)
        return cost.milliseconds(graph.pruned(KeptShare(1e-9, self.multiple).narrowest(graph.groups)))

    def latencies(self, networks: dict[str, nn.Module], turns: int) -> dict[str, list[Latency]]:
        """Each network's latency in each turn."""
        exporter, found = OnnxExporter(), {name: [] for name in networks}  # type: ignore[var-annotated]
        with TemporaryDirectory() as folder:
            models = {}
            for number, (name, network) in enumerate(networks.items()):
                file = Path(folder) / f"{number}.onnx"
                exporter.export(network, file, {}, SIZE, 256 if isinstance(network, UNet) else 8)
                models[name] = exporter.load(file, THREADS)
            for _ in range(turns):
                for name, model in models.items():
                    found[name].append(measure_latency(model, SIZE, THREADS))
        return found

    def run(self, turns: int) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        # one after the other: milliseconds are measured on the way
        train_all([self.wide()], 1)
        least = self.narrowest_ms()
        runs = {f"within {budget} ms": self.within(budget) for budget in BUDGETS_MS if budget > least}
        train_all([self.first_stage(), self.trained_on(), *runs.values()], 1)
        named = {"width 32, trained on as long": self.trained_on(), **runs}
        networks: dict[str, nn.Module] = {name: load_run(run.folder).deployed(CONCEPT) for name, run in named.items()}
        public = {
            "pix2pix ResNet-9 (11.38 M)": ResNet9(),
            "pix2pix U-Net-256 (54.41 M)": UNet(8),
            "U-Net-256 at OMGD's width 16": UNet(8, 16),
        }
        networks |= {name: network.eval().requires_grad_(False) for name, network in public.items()}
        measured = self.latencies(networks, turns)
        photo = (torch.zeros(1, 3, SIZE, SIZE),)
        whole_name = next(iter(named))
        whole_macs, whole = layer_macs(networks[whole_name], photo)[""], named[whole_name].result()[-1]
        images = whole["images_per_concept"]
        lines = [
            "# What 33, 20 and 10 milliseconds buy\n",
            f"{SIZE} px, batch 1, ONNX Runtime, {THREADS} threads, one run: median over {turns} turns of the median of "
            f"30 runs. {CONCEPT}, seed 0, 768 photos: a network of width 32 with batch norm on {WIDE_IMAGES:,} images, "
            f"trained on for {MORE_IMAGES:,}, pruned to the budget in multiples of {self.multiple} channels, tuned "
            f"on {FINE_TUNE_IMAGES:,} with the wide one as teacher; the wide one is trained on for as many. The "
            f"narrowest network of that multiple takes {least:.1f} ms: smaller budgets are left out. "
            f"N = {images:.0f} test photos. Public "
            "generators have random weights: speed and size alone. MACs by torch's flop counter. Begun at commit "
            f"{self.begun.read_text()}.\n",
            f"{command_block(__doc__)}\n",
            f"| network | ms | {' | '.join(COLUMNS)} | L1 against width 32 | parameters | GMACs | latency gain / MAC "
            "gain |",
            "|---|---|" + "---|" * (len(COLUMNS) + 4),
        ]
        for name, network in networks.items():
            milliseconds = statistics.median(latency.median_ms for latency in measured[name])
            macs = layer_macs(network, photo)[""]
            faster = statistics.median(
                one.median_ms / other.median_ms for one, other in zip(measured[whole_name], measured[name], strict=True)
            )
            figures, against, gain = "| " * len(COLUMNS), "", ""
            if name in named:
                row = named[name].result()[-1]
                figures = "".join(f"| {row[column]:.4f} " for column in COLUMNS)
                against = f"{row['reconstruction'] / whole['reconstruction'] - 1:+.1%}"
                if name != whole_name:
                    gain = f"{faster / (whole_macs / macs):.2f}"
            lines.append(
                f"| {name} | {milliseconds:.1f} {figures}| {against} | {parameter_count(network):,} | "
                f"{macs / 1e9:.2f} | {gain} |"
            )
        lines.append("\n## Widths\n")
        for name, run in runs.items():
            figures_of = json.loads((run.folder / COMPRESSION_FILE).read_text())
            widths = ", ".join(f"{layer} {width}" for layer, width in figures_of["after"]["widths"].items())
            lines.append(f"* {name}: {widths}")
        return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    print(Benchmark(options.pairs.resolve(), options.out.resolve(), options.multiple).run(options.turns))
