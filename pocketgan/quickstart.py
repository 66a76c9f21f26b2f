"""The whole pipeline on embedded defaults, by the same commands and YAMLs that a user types."""

import io
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pocketgan.device_bundle import figures_file
from pocketgan.files import write_whole
from pocketgan.images import find_images
from pocketgan.pair_set import Pair, read_pairs
from pocketgan.report import comparison_sheet, write_report
from pocketgan.run_folder import adapter_bytes, last_figures

BASE_STYLES, NEW_STYLE = (19, 11, 24), 4
CROPS = 128
SIZE = 128
# of the few bundled photos two are for the test
BUNDLED_SPLIT, DEFAULT_SPLIT = (0.6, 0.15, 0.25), (0.8, 0.1, 0.1)


def run_quickstart(command: Callable[[list[str]], None], photos: Path | None, out: Path) -> dict[str, float]:
    """Make pairs, train a base on three styles, adapt it to a fourth, test, export, edit unseen photos, report.

    A killed quickstart goes on where it was when it is started again with the same arguments.

    Args:
        command: Runs one pocketgan command line, given without the program's name.
        photos: Folder of photos; the bundled ones if None.
        out: Everything is written below it.

    Returns:
        Wall time of each stage in seconds.

    Raises:
        ValueError: ``out`` holds a quickstart on other photos.
    """
    from datamodules.source_photos import BUNDLED_COUNT

    count = BUNDLED_COUNT if photos is None else len(find_images(photos))
    if count < 3:
        raise ValueError(f"{photos} holds {count} photos; give at least 3, so that one can be held out for the test")
    _claim(out, photos)
    seconds: dict[str, float] = {}
    pairs, base, adapted = out / "pairs", out / "base", out / "adapted"
    concept = f"style_{NEW_STYLE:02d}"

    def stage(name: str, *arguments: str) -> None:
        print(f"\n== {name}: pocketgan {' '.join(arguments)}", flush=True)  # noqa: T201
        start = time.monotonic()
        command(list(arguments))
        seconds[name] = time.monotonic() - start

    configs = str(files("configs"))
    crops = math.ceil(CROPS / count)
    source = [] if photos is None else [f"--data.root={photos}"]
    stage(
        "pairs",
        "predict",
        f"-c={configs}/synthesize/style_transfer.yaml",
        f"--model.teacher.style=[{','.join(map(str, (*BASE_STYLES, NEW_STYLE)))}]",
        f"--model.size={SIZE}",
        f"--data.crops_per_photo={crops}",
        f"--data.limit={CROPS}",
        f"--trainer.default_root_dir={pairs}",
        *source,
    )
    split = BUNDLED_SPLIT if photos is None else DEFAULT_SPLIT
    precision = "bf16-mixed" if computes_bf16() else "32-true"
    common = (
        f"--data.root={pairs}",
        f"--data.size={SIZE}",
        f"--data.split={list(split)}",
        f"--trainer.precision={precision}",
        "--logging.wandb=offline",
    )
    stage(
        "base",
        "fit",
        f"-c={configs}/base_gan/small.yaml",
        *common,
        f"--data.concepts=[{','.join(f'style_{style:02d}' for style in BASE_STYLES)}]",
        f"--trainer.default_root_dir={base}",
        *_resumed(base),
    )
    stage(
        "adaptation",
        "fit",
        f"-c={configs}/lora_adaptation/small.yaml",
        *common,
        f"--model.base={base}",
        f"--data.concepts=[{concept}]",
        f"--trainer.default_root_dir={adapted}",
        *_resumed(adapted),
    )
    stage("test", "test", f"-c={adapted}/config.yaml")
    stage("export", "export", str(adapted), "--target=onnx", f"--out={out / 'export'}", f"--size={SIZE}")

    unseen, held_out = out / "unseen", _test_pairs(pairs, concept, split)
    shutil.rmtree(unseen, ignore_errors=True)
    unseen.mkdir()
    for pair in held_out:
        shutil.copy(pairs / pair.photo_file_name, unseen)
    exported = out / "export" / f"{concept}.onnx"
    stage("edit", "edit", str(unseen), f"--model={exported}", f"--out={out / 'edited'}", "--overwrite")

    start = time.monotonic()
    _report(out, pairs, held_out, exported, seconds)
    seconds["report"] = time.monotonic() - start
    total = sum(seconds.values())
    print(  # noqa: T201
        f"\nDone in {total:.0f} s. Report: {out / 'report.html'} (picture: {out / 'report.png'})\n"
        f"Edited pictures: {out / 'edited'}   Exported model: {exported}"
    )
    return seconds


def computes_bf16() -> bool:
    """Whether what trains here has bf16 arithmetic of its own; elsewhere mixed precision is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # an older torch cannot say; float32 is safe
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _claim(out: Path, photos: Path | None) -> None:
    claim = out / "quickstart.json"
    arguments = {"photos": str(photos.resolve()) if photos else None}
    if claim.is_file():
        found = json.loads(claim.read_text())
        if found != arguments:
            raise ValueError(
                f"{out} holds a quickstart on {found['photos'] or 'the bundled photos'}; choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files; choose a new or empty folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    claim.write_text(json.dumps(arguments))


def _resumed(run: Path) -> list[str]:
    return ["--ckpt_path=last"] if (run / "config.yaml").exists() else []


def _test_pairs(root: Path, concept: str, split: tuple[float, float, float]) -> list[Pair]:
    """The new concept's test pairs, as PairedImages splits them."""
    from datamodules import PairedImages

    data = PairedImages(root, [concept], SIZE, split=split)
    data.setup("test")
    held_out = {pair.photo.name for pair in data.datasets["test"].pairs}
    return [
        pair for pair in read_pairs(root) if pair.concept == concept and Path(pair.photo_file_name).name in held_out
    ]


def _report(out: Path, root: Path, held_out: list[Pair], exported: Path, seconds: dict[str, float]) -> None:
    by_source: dict[str | None, list[Pair]] = {}
    for pair in held_out:
        by_source.setdefault(pair.source, []).append(pair)
    # crops of the unseen photos in turn
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_source.values()))
    shown = [pair for pair in in_turn if pair is not None][:6]
    sheet = comparison_sheet(
        {
            "photo (unseen)": [Image.open(root / pair.photo_file_name) for pair in shown],
            "teacher": [Image.open(root / pair.edit_file_name) for pair in shown],
            "pocketgan": [Image.open(out / "edited" / Path(pair.photo_file_name).name) for pair in shown],
        }
    )
    picture = io.BytesIO()
    sheet.save(picture, format="PNG")
    write_whole(out / "report.png", picture.getvalue())
    figures = json.loads(figures_file(exported).read_text())
    tested = last_figures(out / "adapted", "test")
    write_report(
        out / "report.html",
        sheet,
        title="pocketgan quickstart",
        text=(
            f"A base GAN learned {len(BASE_STYLES)} styles, an adapter a further one, shown here on photos that no "
            f"training saw. All pictures are {SIZE} px."
        ),
        tables={
            "On unseen photos": {name: f"{value:.4g}" for name, value in tested.items() if name != "images"},
            "Model": {
                "exported file": f"{exported.stat().st_size / 1024:.0f} KiB",
                "adapter": f"{adapter_bytes(out / 'adapted') / 1024:.0f} KiB",
                f"latency at {figures['size']} px, {figures['threads']} threads": (
                    f"median {figures['median_ms']:.1f} ms, p95 {figures['p95_ms']:.1f} ms"
                ),
                "ONNX Runtime against PyTorch": f"largest difference {figures['max_difference']:.1e}",
            },
            "Wall time": {name: f"{value:.0f} s" for name, value in seconds.items()},
        },
    )
