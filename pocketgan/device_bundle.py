"""What lies beside exported models: their figures, a model card, digests."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pocketgan.exporters.concept_pack import check_digest
from pocketgan.files import sha256_of, write_whole

CARD_FILE_NAME = "model_card.md"
DIGESTS_FILE_NAME = "SHA256SUMS"
_PACKAGES = ("pocketgan", "torch", "onnx", "onnxruntime", "executorch", "torchao", "coremltools", "litert-torch")


def figures_file(model: Path) -> Path:
    """The JSON file of an exported model's figures: its name with ``.json`` behind."""
    return model.with_name(f"{model.name}.json")


def digests_of(model: Path) -> dict[str, str]:
    """SHA-256 of a model's file, or of each file of its folder, by the name relative to the bundle."""
    files = sorted(path for path in model.rglob("*") if path.is_file()) if model.is_dir() else [model]
    return {file.relative_to(model.parent).as_posix(): sha256_of(file) for file in files}


def check_bundled(model: Path) -> None:
    """Refuse a model whose bytes are not those that its bundle names; a file without a bundle is let through.

    Raises:
        FileNotFoundError: A part of it is missing.
        ValueError: A digest differs; file and both digests are named.
    """
    listing = model.with_name(DIGESTS_FILE_NAME)
    if not listing.is_file():
        return
    for line in listing.read_text().splitlines():
        digest, name = line.split("  ", 1)
        if name == model.name or name.startswith(f"{model.name}/"):
            check_digest(listing.parent / name, digest)


def describe_bundle(folder: Path, origin: dict[str, str]) -> None:
    """Write ``model_card.md`` and ``SHA256SUMS`` for all models of a folder, from their figures.

    Args:
        folder: With models and the figures of each.
        origin: Where edits and photos came from, with their licences.
    """
    every = {}
    for file in sorted(folder.glob("*.json")):
        figures = json.loads(file.read_text())
        model = file.with_suffix("")
        if isinstance(figures, dict) and {"concept", "target", "sha256"} <= figures.keys() and model.exists():
            every[model.name] = figures
    write_whole(folder / CARD_FILE_NAME, _card(every, origin).encode())
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != DIGESTS_FILE_NAME and not path.relative_to(folder).parts[0].startswith(".")
    )
    lines = [f"{sha256_of(folder / name)}  {name}" for name in files]
    write_whole(folder / DIGESTS_FILE_NAME, "\n".join([*lines, ""]).encode())


def _card(every: dict[str, dict[str, Any]], origin: dict[str, str]) -> str:
    concepts = {figures["concept"]: figures["prompt"] for figures in every.values()}
    rows = [
        [
            name,
            figures["target"],
            f"{figures['precision']}, {figures['pixels']}",
            f"{figures['bytes'] / 1024:,.0f} KiB",
            _number(figures["max_difference"], ".1e"),
            _number(figures["psnr_db"], ".1f"),
            _number(figures["l1_before"], ".4f"),
            _number(figures["l1_after"], ".4f"),
            _number(figures["median_ms"], ".1f"),
            _number(figures["p95_ms"], ".1f"),
            _number(figures["peak_memory_mib"], ".0f"),
            f"{figures['size']} px, {figures['threads']} threads",
        ]
        for name, figures in every.items()
    ]
    head = [
        "file", "target", "precision, pixels", "size", "largest difference", "PSNR, dB", "L1 before", "L1 after",
        "median, ms", "p95, ms", "peak memory, MiB", "timed at",
    ]  # fmt: skip
    lint = [
        f"- {name}: {found['operation']} ×{found['number']}: {found['why']}; "
        f"{'applied:' if found['applied'] else 'advised:'} {found['remedy']}"
        for name, figures in every.items()
        for found in figures["lint"]
    ]
    excluded = [
        f"- {name}: calibrated on {figures['calibration_photos']} photos; in float32 stay "
        f"{', '.join(figures['excluded']) or 'no layers'}" + _fine_tuning(figures.get("fine_tuned"))
        for name, figures in every.items()
        if "excluded" in figures
    ]
    digests = [f"- {name}: `{digest}`" for figures in every.values() for name, digest in figures["sha256"].items()]
    sections = [
        "# Model card",
        "Photo editors distilled by pocketgan: a photo goes in, its edit comes out.",
        "## Concepts",
        "\n".join(f"- {concept}: {prompt}" for concept, prompt in concepts.items()),
        "## Origin and licences",
        "\n".join(f"- {key}: {value}" for key, value in origin.items()),
        "What may be done with the weights follows from these licences. The code is pocketgan's, Apache-2.0.",
        "## Files",
        _table(head, rows),
        "Difference and PSNR are between the exported model and PyTorch on real photos, values being in [-1, 1]. L1 is "
        "the mean absolute difference to the teacher's edits on pairs that no training saw, in PyTorch (before) and in "
        "the exported model (after). Times are of this machine's CPU. An empty cell was not measured: the format does "
        "not run on the machine that exported it, or the pairs were not at hand.",
        *(["## int8", "\n".join(excluded)] if excluded else []),
        *(["## Operations that leave an accelerator", "\n".join(lint)] if lint else []),
        "## Digests (SHA-256)",
        "\n".join(digests),
        "`SHA256SUMS` lists every file here: `sha256sum -c SHA256SUMS`.",
        "## Versions",
        ", ".join(f"{package} {found}" for package in _PACKAGES if (found := _version(package))),
    ]
    return "\n\n".join(sections) + "\n"


def _fine_tuning(tuned: dict[str, Any] | None) -> str:
    if tuned is None:
        return ""
    verdict = "kept" if tuned["kept"] else "not kept"
    return (
        f"; fine-tuned on {tuned['images']} images, {verdict} (simulated L1 {tuned['int8_l1_before']:.4f} before, "
        f"{tuned['int8_l1_after']:.4f} after)"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
