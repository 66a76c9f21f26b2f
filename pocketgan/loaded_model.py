"""A trained or exported model opened for use from Python."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pocketgan.editor import Editor


class LoadedModel:
    """Edits pictures; ``pocketgan.load`` makes it.

    Args:
        path: Where it came from, for messages.
        concepts: The edits that it knows.
        open_concept: Makes the editor of one of them; each is kept.
    """

    def __init__(self, path: Path, concepts: list[str], open_concept: "Callable[[str], Editor]") -> None:
        self.path, self.concepts = path, concepts
        self._open = functools.cache(open_concept)

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
            ValueError: The concept or the strength is none, or a side is shorter than 32 pixels.
            UnreadableImageError: The picture's values have no known range.
        """
        from pocketgan.images import as_photo, transparency

        edit = self.editor(concept).edit(as_photo(image), strength)
        if (alpha := transparency(image)) is not None:
            edit.putalpha(alpha)
        return edit


def load(path: Path | str, threads: int | None = None, device: str = "cpu") -> LoadedModel:
    """Open a run, an adapter, an exported file or a pack.

    Args:
        path: Run folder of a base or an adaptation, its ``adapter/``, an exported file, or a pack's or page's folder.
        threads: To compute with on the CPU; PyTorch's if None.
        device: PyTorch's, of a run; exported files run on the CPU.

    Raises:
        FileNotFoundError: There is nothing, or no run, at the path.
        ValueError: It is a file of another program, is damaged, or is an exported one on another device.
    """
    from pocketgan.exporters import EXPORTERS
    from pocketgan.exporters.concept_pack import PACK_FILE_NAME

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run folder or an exported file")
    if path.is_dir() and (path / PACK_FILE_NAME).is_file():
        return _pack(path, threads, device)
    exported = path.is_file() or any(path.suffix == exporter.suffix for exporter in EXPORTERS.values())
    return _exported(path, threads, device) if exported else _run(path, threads, device)


def _pack(folder: Path, threads: int | None, device: str) -> LoadedModel:
    from pocketgan.editor import Editor
    from pocketgan.exporters.concept_pack import ConceptPack

    _check_device(folder, device)
    pack = ConceptPack(folder)

    def editor(concept: str) -> Editor:
        exported = pack.open(concept, threads)
        return Editor(exported, exported.size_divisor, fixed_size=exported.fixed_size)

    return LoadedModel(folder, pack.concepts, editor)


def _check_device(path: Path, device: str) -> None:
    if device != "cpu":
        raise ValueError(f"{path} is exported, and exported models run on the CPU; load its run for device {device}")


def _exported(file: Path, threads: int | None, device: str) -> LoadedModel:
    from pocketgan.device_bundle import check_bundled
    from pocketgan.editor import Editor
    from pocketgan.exporters import EXPORTERS

    _check_device(file, device)
    by_suffix = {exporter.suffix: exporter for exporter in EXPORTERS.values()}
    if file.suffix not in by_suffix:
        raise ValueError(f"{file} is no exported model; those end in {', '.join(by_suffix)}")
    check_bundled(file)
    exported = by_suffix[file.suffix]().load(file, threads)
    editor = Editor(exported, exported.size_divisor, fixed_size=exported.fixed_size)
    return LoadedModel(file, [exported.metadata["concept"]], lambda _: editor)


def _run(folder: Path, threads: int | None, device: str) -> LoadedModel:
    import torch

    from lightning_modules import load_run
    from pocketgan.editor import Editor

    if (folder / "adapter_config.json").is_file() and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if threads is not None:
        torch.set_num_threads(threads)
    run = load_run(folder)

    def editor(concept: str) -> Editor:
        return Editor(run.deployed(concept).to(device), run.generator.size_divisor, device=device)

    return LoadedModel(folder, run.concepts, editor)


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
