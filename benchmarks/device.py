r"""How fast are our networks on a device's runtimes, in float32 and int8, and what do 1, 10 and 100 concepts weigh?

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[4]' --data.root PHOTOS \
    --data.limit 320 --trainer.default_root_dir PAIRS
pocketgan fit -c configs/base_gan/small.yaml --seed_everything 0 --data.root PAIRS --data.concepts '[style_04]' \
    --data.size 128 --model.generator.width 32 --model.discriminator.width 32 --model.generator.norm BatchNorm \
    --trainer.callbacks null --trainer.precision 32-true --trainer.val_check_interval 200 --budget.images 1600 \
    --trainer.default_root_dir runs/wide
pocketgan fit -c configs/channel_condensation/small.yaml --seed_everything 0 --data.root PAIRS \
    --data.concepts '[style_04]' --data.size 128 --model.base runs/wide --model.condense_images 200 \
    --model.concentration_weight 0 --trainer.precision 32-true \
    --model.pruning '{"class_path": "KeptShare", "init_args": {"share": 0.5}}' \
    --trainer.val_check_interval 100 --budget.images 800 --trainer.default_root_dir runs/student
pocketgan quickstart
python -m benchmarks.device --base runs/wide --student runs/student --pack-base pocketgan_quickstart/base \
    --adapter pocketgan_quickstart/adapted
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pix2pix import ResNet9, UNet
from benchmarks.runs import command_block, commit, mean_and_spread
from lightning_modules import load_concepts, load_run
from pocketgan.device_export import SENSITIVITY_PHOTOS, ExportRequest, options_for, pairs_of
from pocketgan.device_gate import RunPairs, l1_to_edits
from pocketgan.exporters import EXPORTERS, Exporter, ExportOptions, OnnxExporter, PackedConcept, Precision
from pocketgan.exporters.concept_pack import write_pack
from pocketgan.networks import BatchNorm, E2GANGenerator
from pocketgan.serve import page_server
from pocketgan.web_page_files import RUNTIME_VERSION, find_runtime

SIZE, THREADS = 256, 2
RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "litert": "LiteRT", "web": "Chromium, WASM"}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
RUN_IN_PAGE = """async ([name, runs]) => {
    const photo = new ort.Tensor("uint8", new Uint8Array(3 * SIZE * SIZE).fill(140), [1, SIZE, SIZE, 3]);
    const times = [];
    for (let run = 0; run < runs; run++) {
        const begun = performance.now();
        await sessions[name].run({ photo });
        times.push(performance.now() - begun);
    }
    return times;
}"""
OPEN_IN_PAGE = """async ([names, threads, size]) => {
    globalThis.ort = await import("/ort.wasm.min.mjs");
    globalThis.SIZE = size;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = "/";
    globalThis.sessions = {};
    for (const name of names) {
        sessions[name] = await ort.InferenceSession.create(`/${name}.onnx`, { executionProviders: ["wasm"] });
    }
    return [crossOriginIsolated, ort.env.versions.web];
}"""


@dataclass
class Subject:
    """A network, its files and its times.

    Attributes:
        name: As the table has it.
        network: (1, 3, 256, 256) to the same.
        pairs: int8 is calibrated on the training photos, and leaves in float32 what the held-out pairs ask for; without
            these none of its layers.
        bytes: By runtime and precision.
        l1: Likewise.
        excluded: The layers that int8 leaves in float32, by runtime.
        times: Milliseconds, likewise.
    """

    name: str
    network: nn.Module
    pairs: RunPairs
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)
    l1: dict[tuple[str, str], float] = field(default_factory=dict)
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def options(self, exporter: Exporter, target: str, precision: Precision) -> ExportOptions:
        """As ``pocketgan export --fixed_size`` would choose them."""
        if self.pairs.held_out:
            request = ExportRequest(target, precision, dynamic_size=False)
            return options_for(self.network, exporter, request, self.pairs, SIZE)[0]
        photos = tuple(self.pairs.training) if precision == "int8" else ()
        return ExportOptions(precision, exporter.own_pixels, False, photos)


def trained(name: str, run: Path) -> Subject:
    """A run of one concept."""
    model = load_run(run)
    (concept,) = model.concepts
    return Subject(name, model.deployed(concept), pairs_of(run, concept, SIZE))


def untrained(name: str, network: nn.Module, photos: list[Tensor]) -> Subject:
    """A network of random weights, whose speed is that of trained ones."""
    return Subject(name, network.eval().requires_grad_(False), RunPairs(photos, []))


@contextmanager
def browser_page(folder: Path) -> Iterator[Any]:
    """A page in headless Chromium that may load the folder's files."""
    from playwright.sync_api import sync_playwright

    (folder / "index.html").write_text("<!doctype html><title>benchmark</title>")
    with page_server(folder, 0) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM))
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        yield page
        browser.close()
        server.shutdown()


def timed(model: Callable[[Tensor], Tensor], photo: Tensor, runs: int) -> list[float]:
    """Milliseconds of each run."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        model(photo)
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def measure(subjects: list[Subject], folder: Path, turns: int, runs: int) -> None:
    """Export each network to each runtime and precision, then time all of them by turns."""
    torch.manual_seed(0)
    photo = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    timers: list[tuple[Subject, tuple[str, str], Callable[[int], list[float]]]] = []
    names: list[str] = []
    with browser_page(folder) as page:
        for subject in subjects:
            for precision in PRECISIONS:
                for target in RUNTIMES:
                    exporter, key = EXPORTERS[target](), (target, precision)
                    file = folder / f"{len(timers)}_{precision}{exporter.suffix}"
                    try:
                        options = subject.options(exporter, target, precision)
                        exporter.export(subject.network, file, {}, SIZE, 8, options)
                    except ValueError as error:
                        print(f"{subject.name}, {target}, {precision}: {error}", file=sys.stderr, flush=True)
                        continue
                    model = exporter.load(file, THREADS)
                    subject.bytes[key] = file.stat().st_size
                    if precision == "int8":
                        subject.excluded[target] = options.excluded
                    if subject.pairs.held_out:
                        subject.l1[key] = l1_to_edits(model, subject.pairs.held_out)
                    subject.times[key] = []
                    if target == "web":
                        names.append(file.stem)
                        timer = partial(lambda name, runs: page.evaluate(RUN_IN_PAGE, [name, runs]), file.stem)
                    else:
                        timer = partial(timed, model.run, model.pictures(photo))
                    timers.append((subject, key, timer))
        package = find_runtime()
        for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
            (folder / name).write_bytes((package / "dist" / name).read_bytes())
        isolated, _ = page.evaluate(OPEN_IN_PAGE, [names, THREADS, SIZE])
        assert isolated, "threads need a page of its own origin"
        torch.set_num_threads(1)  # PyTorch's would wait in the way of the runtimes'
        for turn in range(turns + 1):
            for subject, key, timer in timers:
                times = timer(runs)
                if turn:  # the first warms up
                    subject.times[key].append(statistics.median(times))


def speeds(subjects: list[Subject]) -> list[str]:
    """The table of times."""
    lines = [
        "| network | precision | "
        + " | ".join(f"{name}, ms" for name in RUNTIMES.values())
        + " | fp32 / int8 in ONNX Runtime | bytes of ONNX |",
        "|" + "---|" * (len(RUNTIMES) + 4),
    ]
    for subject in subjects:
        for precision in PRECISIONS:
            cells = []
            for target in RUNTIMES:
                times = subject.times.get((target, precision))
                cells.append(
                    f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})" if times else "none"
                )
            full, small = (subject.times.get(("onnx", other), []) for other in PRECISIONS)
            ratios = [slow / fast for slow, fast in zip(full, small, strict=False)] if precision == "int8" else []
            weight = subject.bytes.get(("onnx", precision))
            lines.append(
                f"| {subject.name} | {precision} | {' | '.join(cells)} | "
                f"{mean_and_spread(ratios, 2) if ratios else ''} | {f'{weight:,}' if weight else ''} |"
            )
    return lines


def losses(subjects: list[Subject]) -> list[str]:
    """The table of what int8 costs in L1 to the teacher's edits, and of the layers that it leaves in float32."""
    lines = [
        "| network | "
        + " | ".join(f"{name}: fp32, int8" for name in {**RUNTIMES, "web": "the page's file, in ONNX Runtime"}.values())
        + " | pairs |",
        "|" + "---|" * (len(RUNTIMES) + 2),
    ]
    for subject in subjects:
        if not subject.l1:
            continue
        cells = []
        for target in RUNTIMES:
            full, small = (subject.l1.get((target, precision)) for precision in PRECISIONS)
            kept = ", ".join(subject.excluded.get(target, ())) or "none"
            cells.append(
                f"{full:.4f}, {small:.4f} ({small / full - 1:+.1%}); {kept}" if full and small else "not exported"
            )
        lines.append(f"| {subject.name} | {' | '.join(cells)} | {len(subject.pairs.held_out)} |")
    return lines


def weights(pack_base: Path, adapter: Path, folder: Path, resnet_bytes: int) -> list[str]:
    """The table of bytes: a pack, an ONNX file a concept, ResNet-9 a concept."""
    model, trained_adapter = load_concepts(pack_base, [adapter]), load_run(adapter)
    (concept,) = trained_adapter.concepts
    write_pack(model, [PackedConcept(concept, "")], folder, 128, 8)
    base = sum((folder / name).stat().st_size for name in ("base.onnx", "base.weights"))
    each = (folder / f"{concept}.safetensors").stat().st_size
    OnnxExporter().export(trained_adapter.deployed(concept), folder / "alone.onnx", {}, 128, 8)
    alone = (folder / "alone.onnx").stat().st_size
    lines = [
        "| concepts | pack: base once, an adapter each | one ONNX file of ours each | one ResNet-9 each |",
        "|---|---|---|---|",
    ]
    for count in (1, 10, 100):
        lines.append(f"| {count} | {base + count * each:,} | {count * alone:,} | {count * resnet_bytes:,} |")
    return [*lines, f"\nBase {base:,} bytes, each concept {each:,}."]


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="run of our base, one concept")
    parser.add_argument("--student", type=Path, required=True, help="run of the compressed student, the same concept")
    parser.add_argument("--pack-base", type=Path, required=True, help="run of a base that has an adapter")
    parser.add_argument("--adapter", type=Path, required=True, help="run of that adapter")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3, help="in a turn; their median counts")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    base = trained("our base, width 32, trained", options.base)
    photos = base.pairs.training[:SENSITIVITY_PHOTOS]  # ranges change no speed
    torch.manual_seed(0)
    full = E2GANGenerator(64, 768, norm=BatchNorm()).eval().fold_prompt(torch.randn(1, 77, 768))
    subjects = [
        untrained("our base at E2GAN's width 64, 77 tokens, random weights", full, photos),
        base,
        trained("our compressed student, trained", options.student),
        untrained("pix2pix ResNet-9, width 64, random weights", ResNet9(), photos),
        untrained("pix2pix U-Net-256, width 64, random weights", UNet(8), photos),
    ]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        measure(subjects, folder, options.turns, options.runs)
        resnet = next(subject for subject in subjects if "ResNet" in subject.name)
        heavy = weights(options.pack_base, options.adapter, folder / "pack", resnet.bytes["onnx", "fp32"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "executorch", "ai-edge-litert", "torch"))
    vnni = "with" if torch.cpu._is_vnni_supported() else "without"
    print(f"# How fast on a device's runtimes, and how heavy?\n\n{command_block(__doc__)}\n")
    print(
        f"{SIZE} px, {THREADS} threads of {os.cpu_count()} cores of an x86 server "
        f"({torch.backends.cpu.get_cpu_capability()}, {vnni} VNNI; no phone was at hand), all models by turns in one "
        f"run: {options.turns} turns of {options.runs} photos after an unmeasured one. Times are the median of the "
        "turns' medians, in brackets the fastest and the slowest turn; ratios are of the same turn, mean ± deviation. "
        f"{packages}, onnxruntime-web {RUNTIME_VERSION}, headless Chromium. Commit {commit()}.\n"
    )
    print("\n".join(speeds(subjects)))
    print("\n## What int8 costs\n\nL1 to the teacher's edits on unseen pairs, and the layers left in float32.\n")
    print("\n".join(losses(subjects)))
    print("\n## Bytes\n\n" + "\n".join(heavy))


if __name__ == "__main__":
    main()
