"""What lies beside exported models: their figures, a model card, digests."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pocketgan.device_gate import MEASURED
from pocketgan.exporters.concept_pack import PACK_FILE_NAME, check_digest, read_pack
from pocketgan.files import sha256_of, whole_files, write_whole
from pocketgan.web_page_files import RUNTIME_VERSION

CARD_FILE_NAME = "model_card.md"
DIGESTS_FILE_NAME = "SHA256SUMS"
_PACKAGES = (
    "pocketgan", "torch", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao", "coremltools", "litert-torch",
    "ai-edge-litert", "ai-edge-quantizer",
)  # fmt: skip
# of figures
_NEEDED = frozenset(
    {"concept", "prompt", "target", "precision", "pixels", "bytes", "lint", "origin", "versions", "sha256", "size",
     "threads", *MEASURED}
)  # fmt: skip


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
        ValueError: A digest differs; file and both digests are named. Or the list of digests is damaged.
    """
    listing = model.with_name(DIGESTS_FILE_NAME)
    for name, digest in _listed(listing).items():
        if name == model.name or name.startswith(f"{model.name}/"):
            check_digest(listing.parent / name, digest)


@contextmanager
def bundle_files(folder: Path) -> Iterator[Path]:
    """Let models be exported into a folder of their own, then move them into a bundle with its card and digests.

    Files of a pack or page in the bundle that a new one replaces are removed.

    Args:
        folder: The bundle; is made if need be, and its other files stay.

    Yields:
        The folder to write models and their figures to. An error leaves the bundle as it was.

    Raises:
        ValueError: The bundle's ``pack.json`` or ``SHA256SUMS`` is damaged.
    """
    with whole_files(folder) as built:
        yield built
        replaced = _complete(built, folder)
    for name in replaced:
        (folder / name).unlink(missing_ok=True)


def _complete(built: Path, folder: Path) -> set[str]:
    """Write ``model_card.md`` and ``SHA256SUMS`` of a bundle into which new files are about to come.

    Args:
        built: Holds the new files, with the figures of each model.
        folder: The bundle, if there is one.

    Returns:
        Names in the bundle that are of no use any more.
    """
    new = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    gone = _replaced_pack(folder) - new if PACK_FILE_NAME in new else set()
    every = {name: figures for name, figures in _models(folder).items() if name not in gone} | _models(built)
    write_whole(built / CARD_FILE_NAME, _card(dict(sorted(every.items()))).encode())
    digests = {
        name: digest
        for name, digest in _listed(folder / DIGESTS_FILE_NAME).items()
        if name not in gone and (folder / name).is_file()
    }
    digests |= {name: sha256_of(built / name) for name in (*new, CARD_FILE_NAME)}
    lines = [f"{digest}  {name}" for name, digest in sorted(digests.items(), key=lambda entry: entry[0])]
    write_whole(built / DIGESTS_FILE_NAME, "\n".join([*lines, ""]).encode())
    return gone


def versions() -> dict[str, str]:
    """Versions of what is installed here of all that exports and runs models, and of the page's runtime."""
    found = {"onnxruntime-web": RUNTIME_VERSION}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_figures(model: Path, figures: dict[str, Any]) -> None:
    """Write what was measured of a model beside it."""
    write_whole(figures_file(model), json.dumps(figures, indent=2).encode())


def lint_lines(findings: list[dict[str, Any]]) -> list[str]:
    """What leaves an accelerator, a line for each kind of operation."""
    return [
        f"{found['operation']} ×{found['number']}: {found['why']}; "
        f"{'applied:' if found['applied'] else 'advised:'} {found['remedy']}"
        for found in findings
    ]


def _replaced_pack(folder: Path) -> set[str]:
    """Names of the files of a bundle's pack or page model, with their figures."""
    if not (folder / PACK_FILE_NAME).is_file():
        return set()
    named = set(read_pack(folder)["sha256"])
    return named | {figures_file(Path(name)).name for name in named}


def _models(folder: Path) -> dict[str, dict[str, Any]]:
    """Figures by the model's name."""
    every = {}
    for file in sorted(folder.glob("*.json")):
        model = file.with_suffix("")
        if not model.exists():
            continue
        try:
            figures = json.loads(file.read_bytes())
        except ValueError as error:
            warnings.warn(f"{CARD_FILE_NAME} lacks {model.name}: {file} is damaged ({error})", stacklevel=2)
            continue
        if isinstance(figures, dict) and figures.keys() >= _NEEDED:
            every[model.name] = figures
    return every


def _listed(listing: Path) -> dict[str, str]:
    """Digest by name, of a file as ``sha256sum`` writes it; none if there is no such file.

    Raises:
        ValueError: A line of another kind.
    """
    if not listing.is_file():
        return {}
    digests = {}
    for line in listing.read_text().splitlines():
        digest, separator, name = line.partition(" ")
        if not (separator and name[:1] in {" ", "*"} and len(digest) == 64):
            raise ValueError(f"{listing} is damaged: it has the line {line[:80]!r}; copy it again, or export again")
        digests[name[1:]] = digest
    return digests


def _card(every: dict[str, dict[str, Any]]) -> str:
    concepts = {figures["concept"]: figures["prompt"] for figures in every.values()}
    rows = [
        [
            name,
            figures["target"],
            f"{figures['precision']}, {figures['pixels']}",
            f"{figures['bytes'] / 1024:,.0f} KiB"
            + (f" beside the base's {figures['base_bytes'] / 1024:,.0f}" if "base_bytes" in figures else ""),
            _number(figures["max_difference"], ".1e"),
            _number(figures["psnr_db"], ".1f"),
            _number(figures["l1_before"], ".4f"),
            _number(figures["l1_after"], ".4f"),
            _number(figures["median_ms"], ".1f"),
            _number(figures["p95_ms"], ".1f"),
            _number(figures["peak_memory_mib"], ".0f"),
            "" if figures["median_ms"] is None else f"{figures['size']} px, {figures['threads']} threads",
        ]
        for name, figures in every.items()
    ]
    head = [
        "file", "target", "precision, pixels", "size", "largest difference", "PSNR, dB", "L1 before", "L1 after",
        "median, ms", "p95, ms", "peak memory, MiB", "timed at",
    ]  # fmt: skip
    lint = [f"- {name}: {line}" for name, figures in every.items() for line in lint_lines(figures["lint"])]
    excluded = [
        f"- {name}: {_rounding(figures['calibration_photos'])}; not rounded are "
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
        *_by_model(every, "origin"),
        "What may be done with the weights follows from these licences. The code is pocketgan's, Apache-2.0.",
        "## Files",
        _table(head, rows),
        "Difference and PSNR are between the exported model and PyTorch on crops of real photos, values being in "
        "[-1, 1]. L1 is the mean absolute difference to the teacher's edits on pairs that no training saw, in PyTorch "
        "(before) and in the exported model (after). Times are of this machine's CPU, a web page's in ONNX Runtime. An "
        "empty cell was not measured: the format does not run on the machine that exported it, or the pairs were not "
        "at hand.",
        *(["## int8", "\n".join(excluded)] if excluded else []),
        *(["## Operations that leave an accelerator", "\n".join(lint)] if lint else []),
        "## Digests (SHA-256)",
        "\n".join(digests),
        "`SHA256SUMS` lists every exported file here: `sha256sum -c SHA256SUMS`.",
        "## Versions",
        *_by_model(every, "versions"),
    ]
    return "\n\n".join(sections) + "\n"


def _by_model(every: dict[str, dict[str, Any]], key: str) -> list[str]:
    """What figures say under a key, once for all models of which it holds."""
    models: dict[tuple[str, ...], list[str]] = {}
    for name, figures in every.items():
        models.setdefault(tuple(f"- {entry}: {value}" for entry, value in figures[key].items()), []).append(name)
    return [f"{', '.join(names)}:\n\n" + "\n".join(lines) for lines, names in models.items()]


def _rounding(calibration_photos: int) -> str:
    return f"calibrated on {calibration_photos} photos" if calibration_photos else "weights alone"


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


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
