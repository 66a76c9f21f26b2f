"""A run turned into a bundle for a device: exported, checked against PyTorch on photos, timed, described."""

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pocketgan.device_bundle import bundle_files, digests_of, lint_lines, versions, write_figures
from pocketgan.device_gate import CHECK_PHOTOS, MEASURED, RunPairs, check_figures, figures_of, l1_to_edits
from pocketgan.exporters import (
    EXPORTERS,
    Exporter,
    ExportOptions,
    OnnxExporter,
    PackedConcept,
    Pixels,
    Precision,
    WebExporter,
    measure_peak_memory,
)
from pocketgan.exporters.concept_pack import GRAPH_FILE_NAME, WEIGHTS_FILE_NAME, ConceptPack, write_pack
from pocketgan.exporters.quantization import find_sensitive_layers, int8_error
from pocketgan.exporters.quantization_aware import check_fine_tuning, fine_tune_for_int8
from pocketgan.pair_files import Split
from pocketgan.web_page_files import write_web_page

if TYPE_CHECKING:
    from lightning_modules import PairedGAN

CALIBRATION_PHOTOS = 64
FEWEST_CALIBRATION_PHOTOS = 20
JUDGED_PAIRS = 64
SENSITIVITY_PHOTOS = 8
# mean absolute difference that int8 may make to the network's own edits, where there are no pairs to judge it by
_LARGEST_OWN_L1 = 0.02


@dataclass(frozen=True)
class ExportRequest:
    """What to make of a run.

    Attributes:
        target: Of ``EXPORTERS``.
        precision: Of weights and activations.
        pixels: What the model takes and gives; the target's own if None: uint8 for a web page and packs, else float32.
        opset: ONNX's operator set, for onnx and web; the exporter's own if None.
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
    pixels: Pixels | None = None
    opset: int | None = None
    dynamic_size: bool = True
    size: int | None = None
    threads: int = 2
    photos: Path | None = None
    calibration: Path | None = None
    fine_tune_images: int = 0
    largest_l1_increase: float = 0.02
    photo_licence: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that would have no effect, or make no sense.

        Raises:
            ValueError: There is one.
        """
        if self.fine_tune_images < 0 or self.threads < 1:
            raise ValueError(
                f"fine_tune_images is {self.fine_tune_images} and threads {self.threads}; give 0 or more, and 1 or more"
            )
        if not 0 <= self.largest_l1_increase < math.inf or (self.size is not None and self.size < 1):
            raise ValueError(
                f"largest_l1_increase is {self.largest_l1_increase} and size {self.size}; give a share of 0 or "
                "more, and pixels"
            )
        if self.fine_tune_images and not EXPORTERS[self.target].scheme.activations:
            raise ValueError(
                f"fine-tuning is for activations in int8, and {self.target} rounds weights alone; leave "
                "--fine_tune_images out"
            )
        given = [
            name for name in ("calibration", "fine_tune_images") if getattr(self, name) and self.precision != "int8"
        ]
        if given:
            raise ValueError(f"{' and '.join(given)} are for int8, not for {self.precision}; add --precision int8")
        if self.opset is not None and not issubclass(EXPORTERS[self.target], OnnxExporter):
            raise ValueError(f"opset is for onnx and web, not for {self.target}; leave it out")

    def exporter(self) -> Exporter:
        """The target's exporter."""
        exporter_class = EXPORTERS[self.target]
        if self.opset is not None and issubclass(exporter_class, OnnxExporter):
            return exporter_class(self.opset)
        return exporter_class()


class Exported(NamedTuple):
    """What came of an export.

    Attributes:
        file: The model; of a pack, the concept's file.
        figures: What was measured, as its JSON file has it.
        parts: Of a pack, the files that its concepts share.
    """

    file: Path
    figures: dict[str, Any]
    parts: tuple[Path, ...] = ()


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

    exporter = request.exporter()
    _check_out(out)
    model = load_run(run)
    concept = choose_concept(concept, model.concepts, run)
    exporter.check_tools()
    if request.fine_tune_images:
        check_fine_tuning()
    size = _size(model, run, request)
    pairs = pairs_of(run, concept, *_sizes_of_pairs(run, exporter, request, size))
    network, photos = model.deployed(concept), _check_photos(request, size)
    options, chosen = options_for(network, exporter, request, pairs, size)
    if options.precision == "int8" and request.fine_tune_images:
        network, chosen["fine_tuned"] = _fine_tuned(network, exporter, options, request.fine_tune_images, pairs)
    packed = PackedConcept(concept, model.prompts[concept])
    with bundle_files(out) as built:
        file = built / _file_name(concept, exporter, request, options)
        metadata = {"concept": packed.name, "prompt": packed.prompt}
        lint = exporter.export(network, file, metadata, size, model.generator.size_divisor, options)
        measured: dict[str, Any] = {**dict.fromkeys(MEASURED), "size": size, "threads": request.threads}
        if exporter.runs_here():
            measured |= figures_of(
                exporter.load(file, request.threads), network, model.deployed(concept), photos, pairs.held_out, size
            )
        figures = {
            "concept": packed.name,
            "prompt": packed.prompt,
            "run": run.name,
            "target": request.target,
            "precision": options.precision,
            "pixels": options.pixels,
            **chosen,
            **measured,
        }
        check_figures(figures, options.precision, options.pixels, request.largest_l1_increase, file)
        if exporter.runs_here():
            figures["peak_memory_mib"] = measure_peak_memory(request.target, file, size, request.threads)
        figures |= {
            "bytes": _bytes(file),
            "lint": [finding._asdict() for finding in lint],
            "origin": _origin(run, request.photo_licence),
            "versions": versions(),
            "sha256": digests_of(file),
        }
        write_figures(file, figures)
        exporter.accompany(file, packed)
    return Exported(out / file.name, figures)


def export_pack(base: Path, adapters: list[Path], out: Path, request: ExportRequest) -> list[Exported]:
    """Export a base once with switchable concepts: its own and those of adapters.

    Args:
        base: Run folder of the base.
        adapters: Run folders of adapters, or what their ``adapter/`` holds.
        out: Folder that gets the pack, figures, ``model_card.md`` and ``SHA256SUMS``.
        request: What to make; target onnx or web, in fp32, between 8-bit pictures.

    Returns:
        Each concept's file and figures.

    Raises:
        FileNotFoundError: A folder is no run or holds no adapter.
        ImportError: A package is not installed.
        ValueError: An adapter is another base's; target, precision or a concept is refused; or the gate refuses one.
    """
    from lightning_modules import load_base, load_concepts, load_run

    exporter = request.exporter()
    if not isinstance(exporter, OnnxExporter) or request.precision != "fp32":
        raise ValueError(
            f"a pack is for onnx or web in fp32, not for {request.target} in {request.precision}: its weights change "
            "with the concept, which int8's scales do not; export each concept alone"
        )
    if request.pixels == "float32":
        raise ValueError("a pack is between 8-bit pictures; leave --pixels out, or give uint8")
    _check_out(out)
    exporter.check_tools()
    model, trained = load_concepts(base, adapters), load_base(base)
    prompts = {**trained.prompts}
    size = _size(trained, base, request)
    folders: dict[str, Path] = dict.fromkeys(trained.concepts, base)
    for folder in adapters:
        run = folder.parent if folder.name == "adapter" else folder
        adapted = load_run(run)
        prompts |= {name: adapted.prompts[name] for name in adapted.concepts}
        folders |= dict.fromkeys(adapted.concepts, run)
    concepts = [PackedConcept(name, prompts.get(name, name)) for name in model.concepts]
    photos = _check_photos(request, size)
    with bundle_files(out) as built:
        lint = write_pack(
            model,
            concepts,
            built,
            size,
            trained.generator.size_divisor,
            dynamic_size=request.dynamic_size,
            exporter=exporter,
            title=f"pocketgan: {base.name}",
        )
        pack = ConceptPack(built)
        # every concept's graph is the same
        memory = measure_peak_memory("onnx", built, size, request.threads, concepts[0].name)
        every = []
        for concept in concepts:
            model.use(concept.name)
            file, run = pack.file_of(concept.name), folders[concept.name]
            figures = {
                "concept": concept.name,
                "prompt": concept.prompt,
                "run": run.name,
                "target": f"{request.target} pack",
                "precision": "fp32",
                "pixels": "uint8",
                **figures_of(
                    pack.open(concept.name, request.threads),
                    model,
                    load_run(run).deployed(concept.name),
                    photos,
                    pairs_of(run, concept.name, *_sizes_of_pairs(run, exporter, request, size)).held_out,
                    size,
                ),
            }
            check_figures(figures, "fp32", "uint8", request.largest_l1_increase, file)
            figures |= {
                "peak_memory_mib": memory,
                "bytes": _bytes(file),
                "base_bytes": sum(_bytes(built / name) for name in (GRAPH_FILE_NAME, WEIGHTS_FILE_NAME)),
                "lint": [finding._asdict() for finding in lint],
                "origin": _origin(run, request.photo_licence),
                "versions": versions(),
                "sha256": digests_of(file),
            }
            write_figures(file, figures)
            every.append((file.name, figures))
        if isinstance(exporter, WebExporter):
            write_web_page(built)
    parts = tuple(out / name for name in pack.shared_files)
    return [Exported(out / name, figures, parts) for name, figures in every]


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; give a folder for the export")


def _file_name(concept: str, exporter: Exporter, request: ExportRequest, options: ExportOptions) -> str:
    """The concept's name, and whatever sets this model apart from others that may lie beside it."""
    kinds = [
        "web" if request.target == "web" else "",
        options.pixels if options.pixels != exporter.own_pixels else "",
        options.precision if options.precision != "fp32" else "",
    ]
    return ".".join([concept, *filter(None, kinds)]) + exporter.suffix


def _size(model: "PairedGAN", run: Path, request: ExportRequest) -> int:
    from lightning_modules import trained_data_of

    trained: int = trained_data_of(run)["size"]
    size = trained if request.size is None else request.size
    model.generator.check_size(size, size)
    return size


def _sizes_of_pairs(run: Path, exporter: Exporter, request: ExportRequest, size: int) -> list[int]:
    """At which sizes the task may be measured: the exported, and for a model of any size the trained."""
    from lightning_modules import trained_data_of

    any_size = exporter.any_size and request.dynamic_size
    return [size, trained_data_of(run)["size"]] if any_size else [size]


def _photos(folder: Path | None, size: int, limit: int) -> list[Tensor]:
    from datamodules import SourcePhotos

    data = SourcePhotos(folder, size=size, limit=limit, batch_size=1)
    data.setup("predict")
    return [batch["photo"] for batch in data.predict_dataloader() if len(batch["photo"])]


def _check_photos(request: ExportRequest, size: int) -> list[Tensor]:
    photos = _photos(request.photos, size, CHECK_PHOTOS)
    if len(photos) < CHECK_PHOTOS:
        warnings.warn(
            f"the model is checked on {len(photos)} photos alone; give --photos a folder with {CHECK_PHOTOS}",
            stacklevel=2,
        )
    return photos


def pairs_of(run: Path, concept: str, *sizes: int) -> RunPairs:
    """Pictures of the pairs that a run was trained on; none, with a warning, where they are no longer there.

    Args:
        run: Run folder.
        concept: Of the pairs.
        sizes: Pixels a side; the first that the pairs have.
    """
    from datamodules import PairBatches
    from lightning_modules import read_config

    data = read_config(run)["data"]
    classes = {each.__name__: each for each in PairBatches.__subclasses__()}
    name, arguments = data["class_path"].rsplit(".", 1)[-1], data["init_args"]
    known = ("root", "split", "seed", "cache")
    refusals: list[Exception] = []
    for size in sizes:
        try:
            if name not in classes:
                raise ValueError(f"the run's pairs came from {name}; known are {', '.join(classes)}")
            given = {key: arguments[key] for key in known if key in arguments}
            pairs = classes[name](concepts=[concept], size=size, **given)
            pairs.setup("fit")
            break
        except (FileNotFoundError, ValueError) as error:
            refusals.append(error)
    else:
        warnings.warn(f"the L1 to the teacher's edits is not measured: {refusals[0]}", stacklevel=2)
        return RunPairs([], [])
    split: Split = "test" if len(pairs.datasets["test"]) else "val"
    return RunPairs(
        [batch["photo"] for batch in pairs.batches("train", 1, CALIBRATION_PHOTOS)],
        [(batch["photo"], batch["edit"]) for batch in pairs.batches(split, 1, JUDGED_PAIRS)],
    )


def options_for(
    network: nn.Module, exporter: Exporter, request: ExportRequest, pairs: RunPairs, size: int
) -> tuple[ExportOptions, dict[str, Any]]:
    """Options of the export, and what was found out for them."""
    pixels = request.pixels or exporter.own_pixels
    plain = ExportOptions(pixels=pixels, dynamic_size=request.dynamic_size)
    if request.precision != "int8":
        return replace(plain, precision=request.precision), {}
    photos = _photos(request.calibration, size, CALIBRATION_PHOTOS) if request.calibration else pairs.training
    if not photos:
        raise ValueError(
            "int8 needs photos to find out what it hurts, and the run's pair set is not at hand; give --calibration "
            "FOLDER"
        )
    if exporter.scheme.activations and len(photos) < FEWEST_CALIBRATION_PHOTOS:
        warnings.warn(
            f"int8 is calibrated on {len(photos)} photos alone; with {FEWEST_CALIBRATION_PHOTOS} or more its ranges "
            "hold for others, too",
            stacklevel=2,
        )
    reference = network.float().cpu()
    judged = _judged(reference, pairs, photos)
    # half of what the gate allows: the target's own quantiser rounds more than the layers' weights and inputs
    largest = l1_to_edits(reference, judged) * (1 + request.largest_l1_increase / 2) or _LARGEST_OWN_L1
    found = find_sensitive_layers(
        reference, photos[:SENSITIVITY_PHOTOS], lambda tried: l1_to_edits(tried, judged), largest, exporter.scheme
    )
    if len(found.excluded) == len(found.changes):
        raise ValueError(
            f"int8 would leave every layer in float32 to stay within {request.largest_l1_increase:.1%} of the L1; use "
            "--precision fp16, or allow more with --largest_l1_increase"
        )
    calibration = tuple(photos) if exporter.scheme.activations else ()
    options = replace(plain, precision="int8", calibration=calibration, excluded=found.excluded)
    return options, {
        "calibration_photos": len(calibration),
        "excluded": found.excluded,
        "sensitivity": found.changes,
    }


def _judged(reference: nn.Module, pairs: RunPairs, photos: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Unseen pairs to judge int8 by; where there are none, photos with the network's own edits."""
    if pairs.held_out:
        return pairs.held_out[:CHECK_PHOTOS]
    with torch.inference_mode():
        return [(photo, reference(photo)) for photo in photos[:SENSITIVITY_PHOTOS]]


def _fine_tuned(
    network: nn.Module, exporter: Exporter, options: ExportOptions, images: int, pairs: RunPairs
) -> tuple[nn.Module, dict[str, Any]]:
    """The network fine-tuned for int8, or as it was where that came out worse; and both errors."""
    reference, photos = network.cpu().float(), list(options.calibration)
    tuned = fine_tune_for_int8(reference, options, images)
    judged = _judged(reference, pairs, photos)
    before, after = (
        int8_error(
            tried,
            photos[:SENSITIVITY_PHOTOS],
            lambda rounded: l1_to_edits(rounded, judged),
            options.excluded,
            exporter.scheme,
        )
        for tried in (reference, tuned)
    )
    kept = tuned if after < before else reference
    return kept, {"images": images, "int8_l1_before": before, "int8_l1_after": after, "kept": kept is tuned}


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


def describe(exported: Exported) -> str:
    """An export in words, for the terminal."""
    figures = exported.figures
    parts = [f"{exported.file}: {figures['bytes'] / 1024:,.0f} KiB"]
    if "base_bytes" in figures:
        parts[0] += f" beside the base's {figures['base_bytes'] / 1024:,.0f}"
    if figures["max_difference"] is None:
        parts.append(f"converted, but not run: {figures['target']} does not run on this system")
    else:
        psnr = "" if figures["psnr_db"] is None else f", {figures['psnr_db']:.1f} dB"
        parts.append(
            f"against PyTorch on {figures['photos']} crops of real photos: largest difference "
            f"{figures['max_difference']:.1e}{psnr}"
        )
        if figures["l1_before"] is not None:
            parts.append(
                f"L1 to the teacher on {figures['pairs']} unseen pairs {figures['l1_before']:.4f} in PyTorch, "
                f"{figures['l1_after']:.4f} here"
            )
        memory = "" if figures["peak_memory_mib"] is None else f", peak memory {figures['peak_memory_mib']:.0f} MiB"
        runtime = " in ONNX Runtime" if figures["target"].startswith("web") else ""
        parts.append(
            f"{figures['size']} px on {figures['threads']} threads{runtime}: median {figures['median_ms']:.1f} ms, p95 "
            f"{figures['p95_ms']:.1f} ms{memory}"
        )
    if "excluded" in figures:
        parts.append(f"not rounded are {', '.join(figures['excluded']) or 'no layers'}")
    return "\n".join(["; ".join(parts), *(f"  {line}" for line in lint_lines(figures["lint"]))])
