"""A trained or exported model opened for use from Python."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pocketgan.editor import Editor

EDITORS_KEPT = 4
_ADAPTER_FILE_NAME = "adapter_config.json"  # PEFT's


class LoadedModel:
    """Edits pictures; ``pocketgan.load`` makes it.

    Args:
        path: Where it came from, for messages.
        concepts: The edits that it knows.
        open_concept: Makes the editor of one of them. The last 4 are kept: each holds a whole base, so that all of a
            pack of 100 concepts would not fit into the memory.
    """

    def __init__(self, path: Path, concepts: list[str], open_concept: "Callable[[str], Editor]") -> None:
        self.path, self.concepts = path, concepts
        self._open = functools.lru_cache(EDITORS_KEPT)(open_concept)

    def editor(self, concept: str | None = None) -> "Editor":
        """The editor of a concept.

        Args:
            concept: One of ``concepts``; needed where there are several.

        Raises:
            ValueError: There is no such concept, or none is chosen among several.
        """
        return self._open(choose_concept(concept, self.concepts, self.path))

    def edit(self, image: Image.Image, concept: str | None = None, strength: float = 1.0) -> Image.Image:
        """Edit a picture at its own size.

        Args:
            image: Any of Pillow's; it is made upright and sRGB.
            concept: One of ``concepts``; needed where there are several.
            strength: Share of the edit in the result, 0 to 1; the rest is the photo.

        Returns:
            Of the upright picture's size: RGB, or RGBA with the picture's transparency.

        Raises:
            TypeError: It is no picture of Pillow's.
            ValueError: The concept or the strength is none, or a side is shorter than 32 pixels.
            UnreadableImageError: The picture's values have no known range.
        """
        from pocketgan.images import as_photo, transparency

        if not isinstance(image, Image.Image):
            raise TypeError(f"found a {type(image).__name__}; give a picture of Pillow's, as PIL.Image.open does")
        edit = self.editor(concept).edit(as_photo(image), strength)
        if (alpha := transparency(image)) is not None:
            edit.putalpha(alpha)
        return edit


def load(
    path: Path | str, threads: int | None = None, device: str = "cpu", base: Path | str | None = None
) -> LoadedModel:
    """Open a run, an adapter, an exported file or a pack.

    Args:
        path: Run folder of a base or an adaptation, its ``adapter/``, such a folder elsewhere (with ``base``), an
            exported file, a pack's or page's folder, or a pack's ``CONCEPT.safetensors``.
        threads: To compute with on the CPU; PyTorch's if None. PyTorch's own number stays as it is.
        device: PyTorch's, of a run or an adapter; exported files run on the CPU.
        base: Run folder of the base that an adapter belongs to, where the adapter stands alone or its run's base has
            been moved; the adapter says by a digest whether it is this one.

    Raises:
        FileNotFoundError: There is nothing, or no run, at the path or at ``base``.
        ValueError: It is a file of another program, is damaged, is an exported one on another device, is a part of a
            pack, is an adapter without its base or with another's, or ``base`` is given where there is no adapter; or
            there are no threads.
    """
    from pocketgan.exporters import EXPORTERS
    from pocketgan.exporters.concept_pack import PACK_FILE_NAME

    path = Path(path)
    if threads is not None and threads < 1:
        raise ValueError(f"{threads} threads compute nothing; give 1 or more")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run folder or an exported file")
    adapter = next((folder for folder in (path, path / "adapter") if (folder / _ADAPTER_FILE_NAME).is_file()), None)
    if base is not None and adapter is None:
        raise ValueError(f"{path} holds no adapter, which is what base (--base) is for; leave it out")
    # a copy of an adapter in some other run's folder is not that run's
    in_its_run = path.name == "adapter" and (path.parent / "config.yaml").is_file()
    if adapter is not None and (base is not None or (adapter == path and not in_its_run)):
        return _adapter(adapter, None if base is None else Path(base), threads, device)
    if path.is_dir() and (path / PACK_FILE_NAME).is_file():
        return _pack(path, threads, device)
    if path.is_file() or any(path.suffix == exporter.suffix for exporter in EXPORTERS.values()):
        part = _part_of_pack(path, threads, device) if (path.parent / PACK_FILE_NAME).is_file() else None
        return part or _exported(path, threads, device)
    return _run(path.parent if adapter == path else path, threads, device)


def _pack(folder: Path, threads: int | None, device: str, concept: str | None = None) -> LoadedModel:
    """A pack with all its concepts, or with one of them."""
    from pocketgan.editor import Editor
    from pocketgan.exporters.concept_pack import ConceptPack

    _check_device(folder, device)
    pack = ConceptPack(folder)

    def editor(concept: str) -> Editor:
        exported = pack.open(concept, threads)
        return Editor(exported, exported.size_divisor, fixed_size=exported.fixed_size)

    return LoadedModel(folder, pack.concepts if concept is None else [concept], editor)


def _part_of_pack(file: Path, threads: int | None, device: str) -> LoadedModel | None:
    """The pack at the concept that a file of it is; None for a file that is a model of its own.

    Raises:
        ValueError: The pack is damaged, or the file is a part that all of its concepts share.
    """
    from pocketgan.exporters.concept_pack import read_pack

    listing = read_pack(file.parent)
    concept_of = {entry["file"]: entry["name"] for entry in listing["concepts"]}
    if file.name in concept_of:
        return _pack(file.parent, threads, device, concept_of[file.name])
    if listing["weights"] is not None and file.name in {listing["graph"], listing["weights"]}:
        raise ValueError(
            f"{file} is a part of a pack; give the folder {file.parent}, and choose a concept with --concept: "
            f"{', '.join(concept_of.values())}"
        )
    return None


def _check_device(path: Path, device: str) -> None:
    if device != "cpu":
        raise ValueError(f"{path} is exported, and exported models run on the CPU; load its run for device {device}")


def _exported(file: Path, threads: int | None, device: str) -> LoadedModel:
    from pocketgan.device_bundle import check_bundled
    from pocketgan.editor import Editor
    from pocketgan.exporters import EXPORTERS

    _check_device(file, device)
    by_suffix = {exporter.suffix: exporter for exporter in reversed(EXPORTERS.values())}  # the web's is ONNX's, too
    if file.suffix not in by_suffix:
        raise ValueError(f"{file} is no exported model; those end in {', '.join(by_suffix)}")
    check_bundled(file)
    exported = by_suffix[file.suffix]().load(file, threads)
    editor = Editor(exported, exported.size_divisor, fixed_size=exported.fixed_size)
    return LoadedModel(file, [exported.metadata["concept"]], lambda _: editor)


def _run(folder: Path, threads: int | None, device: str) -> LoadedModel:
    from lightning_modules import load_run
    from pocketgan.editor import Editor

    run = load_run(folder)

    def editor(concept: str) -> Editor:
        network = run.deployed(concept).to(device)
        return Editor(_on_threads(network, threads), run.generator.size_divisor, device=device)

    return LoadedModel(folder, run.concepts, editor)


def _adapter(folder: Path, base: Path | None, threads: int | None, device: str) -> LoadedModel:
    """An adapter on the base that is given, rather than on the one that its run names."""
    from safetensors import SafetensorError, safe_open

    from lightning_modules import load_base
    from pocketgan.adapters import load_adapter, merge
    from pocketgan.editor import Editor

    if base is None:
        try:
            with safe_open(folder / "prompt_tokens.safetensors", "pt") as opened:
                concepts, about = ", ".join(opened.keys()), opened.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{folder} is a PEFT adapter, but its prompt_tokens.safetensors cannot be read ({error}); give an "
                "adapter/ of a `pocketgan fit`, whole"
            ) from error
        digest = f"{about['base_sha256'][:12]}…" if "base_sha256" in about else "not recorded"
        raise ValueError(
            f"{folder} is an adapter of {concepts} without its base, whose weights' sha256 is {digest} (text encoder: "
            f"{about.get('text_encoder', 'not recorded')}); give that base's run folder as base (--base RUN)"
        )
    trained = load_base(base)
    divisor = trained.generator.size_divisor
    adapted, held = load_adapter(trained.generator_ema, folder, trained.text_encoder.identity)
    generator = merge(adapted)

    def editor(concept: str) -> Editor:
        network = generator.fold_prompt(held[concept][None]).eval().requires_grad_(False).to(device)
        return Editor(_on_threads(network, threads), divisor, device=device)

    return LoadedModel(folder, sorted(held), editor)


def _on_threads(network: "nn.Module", threads: int | None) -> "Callable[[Tensor], Tensor]":
    """A network that computes on so many threads, whatever PyTorch's number."""
    if threads is None:
        return network

    def computed(photo: "Tensor") -> "Tensor":
        with _Threads.set(threads):
            edit: Tensor = network(photo)
        return edit

    return computed


class _Threads:
    """PyTorch's number of threads, set for a time.

    It is each thread's own, but a new thread takes the one that was set last: so the first of several at a time keeps
    what there was, and each of them sets it again.
    """

    _lock: ClassVar = threading.Lock()
    _users: ClassVar = 0
    _before: ClassVar = 0

    @classmethod
    @contextmanager
    def set(cls, threads: int) -> Iterator[None]:
        import torch

        with cls._lock:
            if not cls._users:
                cls._before = torch.get_num_threads()
            cls._users += 1
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            with cls._lock:
                cls._users -= 1
                torch.set_num_threads(cls._before)


def choose_concept(concept: str | None, concepts: list[str], path: Path) -> str:
    """The concept that is meant.

    Args:
        concept: As asked for.
        concepts: What a model knows.
        path: The model's, for the message.

    Raises:
        ValueError: None is given among several, or it is none of them.
    """
    if concept is None and len(concepts) == 1:
        return concepts[0]
    if concept not in concepts:
        found = "needs a concept" if concept is None else f"does not know the concept {concept}"
        raise ValueError(f"{path} {found}; choose one with --concept: {', '.join(concepts)}")
    return concept
