"""One base in a file, each further concept in a small file beside it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import load, save
from torch import Tensor, nn

from pocketgan.digest import weights_digest
from pocketgan.exporters.exporter import ExportedModel, ExportOptions, LintFinding, PackedConcept, file_metadata
from pocketgan.exporters.onnx_exporter import OnnxExporter
from pocketgan.exporters.onnx_lint import lint_onnx
from pocketgan.files import sha256_of, whole_files

if TYPE_CHECKING:  # adapters are merged and timed by what needs this package
    from pocketgan.adapters import ConceptChanges, SwitchableGenerator

PACK_FILE_NAME = "pack.json"
GRAPH_FILE_NAME = "base.onnx"
WEIGHTS_FILE_NAME = "base.weights"
_FORMAT = {"format": "pocketgan-pack", "version": 1}
_LORA_A, _LORA_B = ".lora_A", ".lora_B"


class _OnTokens(nn.Module):
    """A generator with its prompt's tokens as a constant that can be exchanged."""

    tokens: Tensor

    def __init__(self, generator: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("tokens", tokens.clone())

    def forward(self, photo: Tensor) -> Tensor:
        edit: Tensor = self.generator(photo, self.tokens[None])
        return edit


def write_pack(
    model: "SwitchableGenerator",
    concepts: Sequence[PackedConcept],
    folder: Path,
    size: int,
    size_divisor: int,
    *,
    dynamic_size: bool = True,
    exporter: OnnxExporter | None = None,
    title: str = "",
) -> list[LintFinding]:
    """Write a base once and what each concept changes in it.

    ``base.onnx`` holds the graph, uint8 pictures (B, H, W, 3) to the same, and what no concept changes. The tensors
    that some concept changes are its external data, ``base.weights``, so that a runtime can be given others with the
    graph. ``CONCEPT.safetensors`` holds for a changed tensor T either T, or ``T.lora_A`` (r, inputs) and ``T.lora_B``
    (outputs, r), which add their product; ``pack.json`` lists it all with digests.

    Args:
        model: The base with its adapters.
        concepts: Those to write; the base is that of the first where a tensor has no state without a concept.
        folder: Files of these names are replaced.
        size: Pixels a side that the base was trained at.
        size_divisor: Height and width must be multiples of this many pixels.
        dynamic_size: Any size that the divisor divides, else ``size`` alone.
        exporter: Writes the graph; ``OnnxExporter()`` if None.
        title: Of the page that shows it.

    Returns:
        The operations of the graph that leave an accelerator.

    Raises:
        ImportError: A package is not installed.
        ValueError: There is no concept, one is unknown, two are alike or would share a file, or prompts differ in their
            number of tokens.
    """
    exporter = exporter or OnnxExporter()
    names = [concept.name for concept in concepts]
    if not names or len(set(map(_file_name, names))) < len(names):
        raise ValueError(
            f"a pack needs concepts whose names differ in letters, digits, dots or hyphens, not "
            f"{', '.join(names) or 'none'}"
        )
    changes = {name: model.changes(name) for name in names}
    lengths = {name: len(change.tokens) for name, change in changes.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"prompts of one pack must have equally many tokens, but these have: {listed}")
    base = _OnTokens(model.base, changes[names[0]].tokens).eval()
    options = ExportOptions(pixels="uint8", dynamic_size=dynamic_size)
    graph = exporter.converted(base, size, size_divisor, options, optimize=False)
    initializers = {_module_name(held.name): held for held in graph.graph.initializer}
    files = {name: _tensors(change, initializers) for name, change in changes.items()}
    changed = {key.removesuffix(_LORA_A).removesuffix(_LORA_B) for tensors in files.values() for key in tensors}
    with whole_files(folder) as temporary:
        changing = _externalise(graph, sorted(changed), temporary)
        _write_graph(graph, file_metadata({"concept": names[0]}, size, size_divisor, options), temporary)
        for name, tensors in files.items():
            (temporary / _file_name(name)).write_bytes(save(tensors))
        written = sorted(path.name for path in temporary.iterdir())
        pack = {
            **_FORMAT,
            "title": title,
            "base": weights_digest(model.base),
            "size": size,
            "size_divisor": size_divisor,
            "dynamic_size": dynamic_size,
            "precision": "fp32",
            "graph": GRAPH_FILE_NAME,
            "weights": WEIGHTS_FILE_NAME,
            "changing": changing,
            "concepts": [
                {**concept._asdict(), "file": file, "bytes": (temporary / file).stat().st_size}
                for concept in concepts
                for file in [_file_name(concept.name)]
            ],
            "sha256": {name: sha256_of(temporary / name) for name in written},
        }
        (temporary / PACK_FILE_NAME).write_text(json.dumps(pack, indent=2))
    return lint_onnx(graph, model.base, exporter.providers)


def describe_single(file: Path, concept: PackedConcept, exported: ExportedModel, title: str = "") -> None:
    """Write the ``pack.json`` of a folder with one exported ONNX model of one concept, for the web page.

    Args:
        file: The model; ``pack.json`` comes beside it.
        concept: What it does.
        exported: The model, opened.
        title: Of the page.
    """
    pack = {
        **_FORMAT,
        "title": title,
        "base": sha256_of(file),
        "size": int(exported.metadata["size"]),
        "size_divisor": exported.size_divisor,
        "dynamic_size": exported.fixed_size is None,
        "precision": exported.metadata["precision"],
        "graph": file.name,
        "weights": None,
        "changing": {},
        "concepts": [{**concept._asdict(), "file": None, "bytes": 0}],
        "sha256": {file.name: sha256_of(file)},
    }
    with whole_files(file.parent) as temporary:
        (temporary / PACK_FILE_NAME).write_text(json.dumps(pack, indent=2))


class ConceptPack:
    """A pack opened from a folder.

    Args:
        folder: What ``write_pack`` or ``describe_single`` wrote.

    Attributes:
        concepts: Names of what it can do.
        size_divisor: Height and width must be multiples of this many pixels.

    Raises:
        FileNotFoundError: The folder holds no pack, or a file of it is missing.
        ValueError: ``pack.json`` is damaged or of another program or version, or a file's digest is not the one that it
            names.
    """

    def __init__(self, folder: Path) -> None:
        self._pack = read_pack(folder)
        for name, wanted in self._pack["sha256"].items():
            check_digest(folder / name, wanted)
        self._folder = folder
        self.concepts = [concept["name"] for concept in self._pack["concepts"]]
        self.size_divisor: int = self._pack["size_divisor"]

    @property
    def shared_files(self) -> list[str]:
        """Names of the files that all concepts share, ``pack.json`` among them."""
        return [PACK_FILE_NAME, *(self._pack[key] for key in ("graph", "weights") if self._pack[key] is not None)]

    def file_of(self, concept: str) -> Path:
        """The file of a concept; the graph's where it holds the one concept.

        Raises:
            ValueError: There is no such concept.
        """
        if concept not in self.concepts:
            raise ValueError(f"{self._folder} does not hold {concept}; it holds {', '.join(self.concepts)}")
        (entry,) = (entry for entry in self._pack["concepts"] if entry["name"] == concept)
        return self._folder / (entry["file"] or self._pack["graph"])

    def open(self, concept: str, threads: int | None = None, adapter_scale: float = 1.0) -> ExportedModel:
        """Load the base with a concept in it.

        Args:
            concept: One of ``concepts``.
            threads: To compute with; PyTorch's if None.
            adapter_scale: Share of the adapter's deltas; tensors that were trained in full, and the prompt, are as they
                are at any scale.

        Raises:
            ImportError: ONNX Runtime is not installed.
            ValueError: There is no such concept.
        """
        file, graph = self.file_of(concept), self._folder / self._pack["graph"]
        weights = None if file == graph else self._weights(file, adapter_scale)
        return OnnxExporter().load(graph, threads, weights)

    def _weights(self, file: Path, adapter_scale: float) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Every tensor that concepts change, as this one has it."""
        data = (self._folder / self._pack["weights"]).read_bytes()
        held = load(file.read_bytes())
        weights = {}
        for name, place in self._pack["changing"].items():
            count = place["length"] // 4
            base = np.frombuffer(data, "<f4", count, place["offset"]).reshape(place["shape"])
            if name in held:
                base = held[name].numpy()
            elif f"{name}{_LORA_A}" in held:
                delta = held[f"{name}{_LORA_B}"] @ held[f"{name}{_LORA_A}"]
                base = base + adapter_scale * delta.numpy().reshape(base.shape)
            weights[name] = np.ascontiguousarray(base, np.float32)
        return weights


_ENTRIES: dict[str, type] = {
    "sha256": dict,
    "changing": dict,
    "concepts": list,
    "graph": str,
    "size": int,
    "size_divisor": int,
    "dynamic_size": bool,
}


def read_pack(folder: Path) -> dict[str, Any]:
    """What the ``pack.json`` of a folder says; see ``ConceptPack``."""
    listing = folder / PACK_FILE_NAME
    if not listing.is_file():
        raise FileNotFoundError(f"{folder} holds no pack ({PACK_FILE_NAME} is missing); `pocketgan export` writes one")
    try:
        pack = json.loads(listing.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{listing} is damaged ({error}); copy the whole folder again, or export again") from error
    found = {key: pack.get(key) for key in _FORMAT} if isinstance(pack, dict) else {}
    if found != _FORMAT:
        raise ValueError(f"{listing} says {found}, but {_FORMAT} is needed; export it with this version")
    damaged = ValueError(f"{listing} is damaged; copy the whole folder again, or export again")
    try:
        whole = all(isinstance(pack[key], kind) for key, kind in _ENTRIES.items())
        entries = pack["concepts"]
        names = [*pack["sha256"], pack["graph"], pack["weights"] or "", *(entry["file"] or "" for entry in entries)]
        # a name that leads elsewhere is none of a pack's
        whole &= all(Path(name).name == name for name in names)
        whole &= all(isinstance(entry["name"], str) for entry in entries)
    except (KeyError, TypeError) as error:
        raise damaged from error
    if not whole:
        raise damaged
    return pack


def check_digest(file: Path, wanted: str) -> None:
    """Refuse a file that is not the one that was written.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its SHA-256 is another.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy the whole folder again, or export again")
    found = sha256_of(file)
    if found != wanted:
        raise ValueError(
            f"{file} is damaged: its sha256 is {found}, but {wanted} was exported; copy it again, or export again"
        )


def _module_name(initializer: str) -> str:
    """The name in ``_OnTokens`` of what stands inside a wrapper for the pixels, and of a group norm's native form."""
    return initializer.removeprefix("network.").replace(".affine.", ".")


def _tensors(change: "ConceptChanges", initializers: dict[str, Any]) -> dict[str, Tensor]:
    """A concept's file: tensors under the names, and in the shapes, that the graph has."""
    whole = {"tokens": change.tokens, **{f"generator.{key}": value for key, value in change.whole.items()}}
    tensors = {
        initializers[key].name: value.reshape(list(initializers[key].dims)).float().contiguous()
        for key, value in whole.items()
        if not key.endswith("num_batches_tracked")  # which no network computes with
    }
    for key, (a, b, scale) in change.deltas.items():
        name = initializers[f"generator.{key}"].name
        tensors[f"{name}{_LORA_A}"], tensors[f"{name}{_LORA_B}"] = a.float().contiguous(), scale * b.float()
    return tensors


def _externalise(graph: Any, names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Move initializers to the weights' file; returns shape, offset and length in bytes of each."""
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import set_external_data

    places: dict[str, dict[str, Any]] = {}
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    with (folder / WEIGHTS_FILE_NAME).open("wb") as file:
        for name in names:
            values = numpy_helper.to_array(held[name]).astype("<f4").tobytes()
            places[name] = {"shape": list(held[name].dims), "offset": file.tell(), "length": len(values)}
            # the helper wants the bytes here before it says that they are elsewhere
            held[name].raw_data = values
            set_external_data(held[name], WEIGHTS_FILE_NAME, places[name]["offset"], len(values))
            held[name].data_location = TensorProto.EXTERNAL
            held[name].ClearField("raw_data")
            file.write(values)
    return places


def _write_graph(graph: Any, metadata: dict[str, str], folder: Path) -> None:
    from onnx import checker, helper

    helper.set_model_props(graph, metadata)
    (folder / GRAPH_FILE_NAME).write_bytes(graph.SerializeToString())
    checker.check_model(str(folder / GRAPH_FILE_NAME), full_check=True)


def _file_name(concept: str) -> str:
    return re.sub(r"[^\w.-]", "_", concept) + ".safetensors"
