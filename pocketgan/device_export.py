"""A run turned into a bundle for a device: exported, checked against PyTorch on photos, timed, described."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pocketgan.device_bundle import describe_bundle, digests_of, figures_file
from pocketgan.exporters import (
    EXPORTERS,
    ExportedModel,
    Exporter,
    ExportOptions,
    OnnxExporter,
    Pixels,
    Precision,
    compare,
    measure_latency,
    measure_peak_memory,
)
from pocketgan.exporters.concept_pack import ConceptPack, PackedConcept, describe_single, write_pack
from pocketgan.exporters.quantization import find_sensitive_layers
from pocketgan.files import write_whole
from pocketgan.pair_files import Split

if TYPE_CHECKING:
    from lightning_modules import PairedGAN

CHECK_PHOTOS = 20
CALIBRATION_PHOTOS = 64
FEWEST_CALIBRATION_PHOTOS = 20
JUDGED_PAIRS = 64
SENSITIVITY_PHOTOS = 8
LARGEST_L1_INCREASE = 0.02
# WebGPU has no kernel for ONNX's own Attention, which opset 23 brought (docs/webgpu-operators.md of onnxruntime-web)
WEB_OPSET = 20


class Limit(NamedTuple):
    """What the gate lets through.

    Attributes:
        max_difference: Largest absolute difference of any value, values being in [-1, 1].
        psnr_db: Least peak signal-to-noise ratio, the peak being 2.
    """

    max_difference: float
    psnr_db: float


# float16 and int8 differ by a lot in single pixels at edges; their mean, and the L1 to the teacher, tell
LIMITS: dict[Precision, Limit] = {"fp32": Limit(1e-3, 60), "fp16": Limit(2.0, 45), "int8": Limit(2.0, 28)}
# a picture of 256 levels is off by half a level, and by a whole one where rounding tips over
_LEVEL_LIMIT = Limit(1.5 / 127.5, 45)


@dataclass(frozen=True)
class ExportRequest:
    """What to make of a run.

    Attributes:
        target: Of ``EXPORTERS``, or "web".
        precision: Of weights and activations.
        pixels: What the model takes and gives; a web page's model takes uint8.
        dynamic_size: Any height and width, where the target can.
        size: Side in pixels at which it is checked and timed, and which a model of one size takes.
        threads: Threads while it is timed.
        photos: Folder of photos to check on; the bundled ones if None.
        calibration: Folder of photos that int8 is calibrated on; the training photos of the run's pair set if None.
        fine_tune_images: Photos that int8 is fine-tuned on before; 0 for none.
        largest_l1_increase: Share by which the L1 to the teacher's edits may rise.
        photo_licence: Of the photos that were trained on, for the model card.
    """

    target: str = "onnx"
    precision: Precision = "fp32"
    pixels: Pixels = "float32"
    dynamic_size: bool = True
    size: int | None = None
    threads: int = 2
    photos: Path | None = None
    calibration: Path | None = None
    fine_tune_images: int = 0
    largest_l1_increase: float = LARGEST_L1_INCREASE
    photo_licence: str | None = None


class Exported(NamedTuple):
    """What came of an export.

    Attributes:
        file: The model; of a pack, the concept's file.
        figures: What was measured, as its JSON file has it.
    """

    file: Path
    figures: dict[str, Any]


class RunPairs(NamedTuple):
    """Of the run's pair set, at the exported size.

    Attributes:
        training: Photos (1, 3, S, S) of the training side.
        held_out: Photos and edits (1, 3, S, S) of the test or validation side.
    """

    training: list[Tensor]
    held_out: list[tuple[Tensor, Tensor]]


def export_run(run: Path, out: Path, request: ExportRequest, concept: str | None = None) -> Exported:
    """Export one concept of a run.

    Args:
        run: Run folder of a base, an adapter or a student.
        out: Folder that gets the model, its figures, ``model_card.md`` and ``SHA256SUMS``.
        request: What to make.
        concept: Needed where the run knows several.

    Returns:
        The model and its figures.

    Raises:
        FileNotFoundError: The folder is no run, or it never trained.
        ImportError: A package of the target is not installed.
        ValueError: The gate refuses the model, which is not kept then; or an option makes no sense for this run.
    """
    from lightning_modules import load_run
    from pocketgan.loaded_model import choose_concept

    model = load_run(run)
    concept = choose_concept(concept, model.concepts, run)
    web = request.target == "web"
    if web:
        _find_runtime()
    exporter = _exporter(request)
    request = replace(request, pixels="uint8") if web else request
    size = _size(model, run, request)
    pairs = pairs_of(run, concept, size)
    network, check_photos = model.deployed(concept), _photos(request.photos, size)
    options, chosen = options_for(network, request, pairs, size)
    if options.precision == "int8" and request.fine_tune_images:
        network, chosen["fine_tuned"] = _fine_tuned(network, options, request.fine_tune_images, pairs)
    name = concept if request.precision == "fp32" else f"{concept}.{request.precision}"
    file = out / f"{name}{exporter.suffix}"
    with _unchecked(file) as unchecked:
        metadata = {"concept": concept, "prompt": model.prompts[concept]}
        lint = exporter.export(network, unchecked, metadata, size, model.generator.size_divisor, options)
        figures = {
            "concept": concept,
            "prompt": model.prompts[concept],
            "run": run.name,
            "target": request.target,
            "precision": options.precision,
            "pixels": options.pixels,
            **chosen,
            **_measured(exporter, unchecked, network, model.deployed(concept), check_photos, pairs, size, request),
        }
        _check(figures, options.precision, options.pixels, request, unchecked)
    figures |= {"bytes": _bytes(file), "lint": [finding._asdict() for finding in lint], "sha256": digests_of(file)}
    _write_figures(file, figures)
    if web:
        describe_single(
            file, PackedConcept(concept, model.prompts[concept]), OnnxExporter().load(file), f"pocketgan: {concept}"
        )
        _write_page(out)
    describe_bundle(out, _origin(run, request.photo_licence))
    return Exported(file, figures)


def export_pack(base: Path, adapters: list[Path], out: Path, request: ExportRequest) -> list[Exported]:
    """Export a base once with switchable concepts: its own and those of adapters.

    Args:
        base: Run folder of the base.
        adapters: Run folders of adapters, or what their ``adapter/`` holds.
        out: Folder that gets the pack, figures, ``model_card.md`` and ``SHA256SUMS``.
        request: What to make; target onnx or web, in fp32.

    Returns:
        Each concept's file and figures.

    Raises:
        FileNotFoundError: A folder is no run or holds no adapter.
        ImportError: A package is not installed.
        ValueError: An adapter is another base's; target, precision or a concept is refused; or the gate refuses one.
    """
    from lightning_modules import load_base, load_concepts, load_run

    if request.target == "web":
        _find_runtime()
    if request.target not in {"onnx", "web"} or request.precision != "fp32":
        raise ValueError(
            f"a pack is for onnx or web in fp32, not for {request.target} in {request.precision}: its weights change "
            "with the concept, which int8's scales do not; export each concept alone"
        )
    model, trained = load_concepts(base, adapters), load_base(base)
    prompts = {**trained.prompts}
    size = _size(trained, base, request)
    folders: dict[str, Path] = dict.fromkeys(trained.concepts, base)
    for folder in adapters:
        run = load_run(folder.parent if folder.name == "adapter" else folder)
        prompts |= {name: run.prompts[name] for name in run.concepts}
        folders |= dict.fromkeys(run.concepts, folder.parent if folder.name == "adapter" else folder)
    concepts = [PackedConcept(name, prompts.get(name, name)) for name in model.concepts]
    check_photos = _photos(request.photos, size)
    out.mkdir(parents=True, exist_ok=True)
    request = replace(request, pixels="uint8")
    every = []
    with tempfile.TemporaryDirectory(prefix=".unchecked.", dir=out) as temporary:
        built = Path(temporary) / "pack"
        write_pack(
            model,
            concepts,
            built,
            size,
            trained.generator.size_divisor,
            dynamic_size=request.dynamic_size,
            opset=WEB_OPSET if request.target == "web" else OnnxExporter().opset,
            title=f"pocketgan: {base.name}",
        )
        pack = ConceptPack(built)
        for concept in concepts:
            model.use(concept.name)
            exported = pack.open(concept.name, request.threads)
            figures = {
                "concept": concept.name,
                "prompt": concept.prompt,
                "run": folders[concept.name].name,
                "target": f"{request.target} pack",
                "precision": "fp32",
                "pixels": "uint8",
                **_compared(exported, model, model, check_photos, pairs_of(folders[concept.name], concept.name, size)),
                **_timed(exported, size, request.threads),
                "peak_memory_mib": None,
                "base_bytes": _bytes(built / "base.onnx") + _bytes(built / "base.weights"),
            }
            _check(figures, "fp32", "uint8", request, built)
            every.append(figures)
        for path in sorted(built.iterdir()):
            path.replace(out / path.name)
    listed = {entry["name"]: entry for entry in json.loads((out / "pack.json").read_text())["concepts"]}
    exported_concepts = []
    for figures in every:
        file = out / listed[figures["concept"]]["file"]
        figures |= {"bytes": _bytes(file), "sha256": digests_of(file), "lint": []}
        _write_figures(file, figures)
        exported_concepts.append(Exported(file, figures))
    if request.target == "web":
        _write_page(out)
    describe_bundle(out, _origin(base, request.photo_licence))
    return exported_concepts


def _exporter(request: ExportRequest) -> Exporter:
    if request.target == "web":
        exporter: Exporter = OnnxExporter(WEB_OPSET)
    else:
        exporter = EXPORTERS[request.target]()
    if request.precision not in exporter.precisions:
        raise ValueError(
            f"{request.target} is exported in {', '.join(exporter.precisions)}, not in {request.precision}; choose "
            "another precision or target"
        )
    return exporter


def _size(model: "PairedGAN", run: Path, request: ExportRequest) -> int:
    from lightning_modules import trained_data_of

    trained: int = trained_data_of(run)["size"]
    size = request.size or trained
    model.generator.check_size(size, size)
    return size


@contextmanager
def _unchecked(file: Path) -> Iterator[Path]:
    """Let a model be written under another name in its folder; it takes its own if nothing is raised."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unchecked.", dir=file.parent) as temporary:
        unchecked = Path(temporary) / file.name
        yield unchecked
        if file.is_dir():
            shutil.rmtree(file)
        unchecked.replace(file)


def _photos(folder: Path | None, size: int, limit: int = CHECK_PHOTOS) -> list[Tensor]:
    from datamodules import SourcePhotos

    data = SourcePhotos(folder, size=size, limit=limit, batch_size=1)
    data.setup("predict")
    return [batch["photo"] for batch in data.predict_dataloader() if len(batch["photo"])]


def pairs_of(run: Path, concept: str, size: int) -> RunPairs:
    """Pictures of the pairs that a run was trained on; none, with a warning, where they are no longer there."""
    from datamodules import PairedImages
    from lightning_modules import trained_data_of

    arguments = trained_data_of(run)
    known = ("root", "split", "seed", "cache")
    try:
        data = PairedImages(concepts=[concept], size=size, **{key: arguments[key] for key in known if key in arguments})
        data.setup("fit")
    except (FileNotFoundError, ValueError) as error:
        warnings.warn(f"the L1 to the teacher's edits is not measured: {error}", stacklevel=2)
        return RunPairs([], [])
    split: Split = "test" if len(data.datasets["test"]) else "val"
    return RunPairs(
        [batch["photo"] for batch in data.batches("train", 1, CALIBRATION_PHOTOS)],
        [(batch["photo"], batch["edit"]) for batch in data.batches(split, 1, JUDGED_PAIRS)],
    )


def options_for(
    network: nn.Module, request: ExportRequest, pairs: RunPairs, size: int
) -> tuple[ExportOptions, dict[str, Any]]:
    """Options of the export, and what was found out for them."""
    plain = ExportOptions(pixels=request.pixels, dynamic_size=request.dynamic_size)
    if request.precision != "int8":
        return replace(plain, precision=request.precision), {}
    photos = _photos(request.calibration, size, CALIBRATION_PHOTOS) if request.calibration else pairs.training
    if not photos:
        raise ValueError(
            "int8 needs photos to calibrate on, and the run's pair set is not at hand; give --calibration FOLDER"
        )
    if len(photos) < FEWEST_CALIBRATION_PHOTOS:
        warnings.warn(
            f"int8 is calibrated on {len(photos)} photos alone; with {FEWEST_CALIBRATION_PHOTOS} or more its ranges "
            "hold for others, too",
            stacklevel=2,
        )
    reference = network.float().cpu()
    few = photos[:SENSITIVITY_PHOTOS]
    if pairs.held_out:
        judged = pairs.held_out[:CHECK_PHOTOS]
        before = l1_to_edits(reference, judged)
        # half of what the gate allows: the target's own quantiser rounds more than the layers' weights and inputs
        found = find_sensitive_layers(
            reference, few, lambda tried: l1_to_edits(tried, judged), before * (1 + request.largest_l1_increase / 2)
        )
    else:
        with torch.inference_mode():
            own = [(photo, reference(photo)) for photo in few]
        found = find_sensitive_layers(reference, few, lambda tried: l1_to_edits(tried, own), LARGEST_L1_INCREASE)
    options = replace(plain, precision="int8", calibration=tuple(photos), excluded=found.excluded)
    return options, {"calibration_photos": len(photos), "excluded": found.excluded, "sensitivity": found.changes}


def _fine_tuned(
    network: nn.Module, options: ExportOptions, images: int, pairs: RunPairs
) -> tuple[nn.Module, dict[str, Any]]:
    """The network fine-tuned for int8, or as it was where that came out worse; and both errors."""
    from pocketgan.exporters.quantization import int8_error
    from pocketgan.exporters.quantization_aware import fine_tune_for_int8

    reference = network.cpu().float()
    tuned = fine_tune_for_int8(reference, options, images)
    if pairs.held_out:
        judged = pairs.held_out[:CHECK_PHOTOS]
    else:
        with torch.inference_mode():
            judged = [(photo, reference(photo)) for photo in options.calibration[:SENSITIVITY_PHOTOS]]
    photos = options.calibration[:SENSITIVITY_PHOTOS]
    before, after = (
        int8_error(tried, photos, lambda rounded: l1_to_edits(rounded, judged), options.excluded)
        for tried in (reference, tuned)
    )
    kept = tuned if after < before else reference
    return kept, {"images": images, "int8_l1_before": before, "int8_l1_after": after, "kept": kept is tuned}


def l1_to_edits(network: Callable[[Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Mean absolute difference to the edits, values being in [-1, 1]."""
    with torch.inference_mode():
        return torch.stack([(network(photo) - edit).abs().mean() for photo, edit in pairs]).mean().item()


def _measured(
    exporter: Exporter,
    file: Path,
    network: nn.Module,
    trained: nn.Module,
    photos: list[Tensor],
    pairs: RunPairs,
    size: int,
    request: ExportRequest,
) -> dict[str, Any]:
    """Figures of an exported file; without any where the format does not run on this system."""
    if not exporter.runs_here():
        return {**dict.fromkeys(_MEASURED), "size": size, "threads": request.threads}
    exported = exporter.load(file, request.threads)
    target = "onnx" if request.target == "web" else request.target
    return {
        **_compared(exported, network, trained, photos, pairs),
        **_timed(exported, size, request.threads),
        "peak_memory_mib": measure_peak_memory(target, file, size, request.threads),
    }


_MEASURED = (
    "max_difference", "psnr_db", "photos", "l1_before", "l1_after", "pairs", "median_ms", "p95_ms", "peak_memory_mib",
)  # fmt: skip


def _compared(
    exported: ExportedModel, network: nn.Module, trained: nn.Module, photos: list[Tensor], pairs: RunPairs
) -> dict[str, Any]:
    difference = compare(network, exported, photos)
    judged = bool(pairs.held_out)
    return {
        "max_difference": difference.max_difference,
        # infinite where all are equal, which JSON lacks
        "psnr_db": difference.psnr_db if difference.max_difference else None,
        "photos": len(photos),
        "l1_before": l1_to_edits(trained.cpu().float().eval(), pairs.held_out) if judged else None,
        "l1_after": l1_to_edits(exported, pairs.held_out) if judged else None,
        "pairs": len(pairs.held_out),
    }


def _timed(exported: ExportedModel, size: int, threads: int) -> dict[str, Any]:
    return measure_latency(exported, size, threads)._asdict()


def _check(figures: dict[str, Any], precision: Precision, pixels: Pixels, request: ExportRequest, file: Path) -> None:
    """The gate.

    Raises:
        ValueError: A figure is beyond its limit.
    """
    if figures["max_difference"] is None:
        return
    limit = LIMITS[precision]
    if pixels == "uint8":
        limit = Limit(max(limit.max_difference, _LEVEL_LIMIT.max_difference), min(limit.psnr_db, _LEVEL_LIMIT.psnr_db))
    psnr = float("inf") if figures["psnr_db"] is None else figures["psnr_db"]
    if not (figures["max_difference"] <= limit.max_difference and psnr >= limit.psnr_db):
        raise ValueError(
            f"the exported model {file.name} differs from PyTorch by {figures['max_difference']:.1e} on real photos "
            f"({psnr:.1f} dB), where {precision} may by {limit.max_difference:.1e} ({limit.psnr_db:.0f} dB); it was "
            "not kept"
        )
    before, after = figures["l1_before"], figures["l1_after"]
    if before is not None and not after <= before * (1 + request.largest_l1_increase):
        raise ValueError(
            f"the exported model {file.name} is {after / before - 1:.1%} worse than PyTorch in its L1 to the teacher's "
            f"edits ({before:.4f} to {after:.4f} on {figures['pairs']} unseen pairs), where "
            f"{request.largest_l1_increase:.1%} is allowed; it was not kept. Try --fine_tune_images 400, or allow more "
            "with --largest_l1_increase"
        )


def _write_figures(file: Path, figures: dict[str, Any]) -> None:
    write_whole(figures_file(file), json.dumps(figures, indent=2).encode())


def _bytes(file: Path) -> int:
    return sum(part.stat().st_size for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file())


def _origin(run: Path, photo_licence: str | None) -> dict[str, str]:
    """Where a run's pairs came from, with licences, as far as it is recorded."""
    from lightning_modules import trained_data_of
    from pocketgan.pair_set import MANIFEST_FILE_NAME, read_manifest

    root = Path(trained_data_of(run)["root"])
    manifest = read_manifest(root) if (root / MANIFEST_FILE_NAME).is_file() else {}
    origin = manifest.get("origin", {})
    return {
        "Teacher": f"{manifest.get('teacher', {}).get('name', 'not recorded')} ({origin.get('model', 'not recorded')})",
        "Licence of the teacher": origin.get("licence", "not recorded"),
        "Pair set": manifest.get("hash", "not at hand"),
        "Licence of the photos": photo_licence or "not recorded; name it with --photo_licence before you publish",
    }


def _find_runtime() -> None:
    """Refuse before the work where the page would lack its runtime."""
    from pocketgan.web_page_files import find_runtime

    find_runtime()


def _write_page(out: Path) -> None:
    from pocketgan.web_page_files import write_web_page

    write_web_page(out)


def describe(exported: Exported) -> str:
    """An export in words, for the terminal."""
    figures = exported.figures
    parts = [f"{exported.file}: {figures['bytes'] / 1024:,.0f} KiB"]
    if figures["max_difference"] is None:
        parts.append(f"converted, but not run: {figures['target']} does not run on this system")
    else:
        psnr = "" if figures["psnr_db"] is None else f", {figures['psnr_db']:.1f} dB"
        parts.append(
            f"against PyTorch on {figures['photos']} real photos: largest difference "
            f"{figures['max_difference']:.1e}{psnr}"
        )
        if figures["l1_before"] is not None:
            parts.append(
                f"L1 to the teacher on {figures['pairs']} unseen pairs {figures['l1_before']:.4f} in PyTorch, "
                f"{figures['l1_after']:.4f} here"
            )
        memory = "" if figures["peak_memory_mib"] is None else f", peak memory {figures['peak_memory_mib']:.0f} MiB"
        parts.append(
            f"{figures['size']} px on {figures['threads']} threads: median {figures['median_ms']:.1f} ms, p95 "
            f"{figures['p95_ms']:.1f} ms{memory}"
        )
    if "excluded" in figures:
        parts.append(f"in float32 stay {', '.join(figures['excluded']) or 'no layers'}")
    lines = ["; ".join(parts)]
    for found in figures["lint"]:
        done = "applied:" if found["applied"] else "advised:"
        lines.append(f"  {found['operation']} ×{found['number']}: {found['why']}; {done} {found['remedy']}")
    return "\n".join(lines)
