"""Photos through a network at their own size, and files to files."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pocketgan.files import write_whole
from pocketgan.images import UnreadableImageError, find_images, load_photo, to_image, to_tensor

MINIMUM_SIDE = 32


class Editor:
    """Edits pictures of any size with a network that wants multiples of its divisor.

    A picture of more than ``tile`` pixels a side is edited in tiles that overlap by a quarter and are blended
    by a smooth ramp. The outer quarters of each overlap are dropped, so that a network which looks no further
    than ``tile / 16`` pixels leaves no seam. Attention and norms over the whole picture look further: each
    tile gets its own statistics, and a larger tile serves them better.

    Args:
        model: (B, 3, H, W) in [-1, 1] to the same: an ``ExportedModel``, or a network in eval mode.
        size_divisor: Height and width of what the model gets are multiples of this many pixels.
        tile: Largest side in pixels that the model gets. Attention's memory grows with its fourth power: with
            ONNX Runtime, a generator of width 64 takes 1.1 GB at 512, 3.7 GB at 768 and 10.7 GB at 1024.
        device: Where the model is.
        fixed_size: The one height and width that the model takes; tiles are of this size then, and smaller pictures are
            padded to it. None if it takes any that ``size_divisor`` divides.

    Raises:
        ValueError: ``tile``, or ``fixed_size``, is not a multiple of 4 · ``size_divisor``.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        size_divisor: int,
        tile: int = 512,
        device: torch.device | str = "cpu",
        fixed_size: int | None = None,
    ) -> None:
        step = 4 * size_divisor
        tile = fixed_size or tile
        if tile < step or tile % step:
            below = max(tile // step, 1) * step
            raise ValueError(f"tile {tile} is not a multiple of {step}; use {below} or {below + step}")
        self.model, self.size_divisor, self.tile, self.device = model, size_divisor, tile, device
        self.overlap = tile // 4
        self.fixed_size = fixed_size

    def edit(self, image: Image.Image) -> Image.Image:
        """Edit a picture at its own size.

        Args:
            image: RGB, sRGB, upright; ``load_photo`` makes it so.

        Returns:
            RGB, of the picture's size.

        Raises:
            ValueError: A side is shorter than 32 pixels, or the picture is not RGB.
        """
        if min(image.size) < MINIMUM_SIDE:
            raise ValueError(
                f"the picture is {image.width}×{image.height} pixels; both must be at least {MINIMUM_SIDE}"
            )
        edit = Image.new("RGB", image.size)
        for top, bottom in self._spans(image.height):
            # first along the row, then row on row: where four tiles meet, no tile's edge is left uncovered
            row = Image.new("RGB", (image.width, bottom - top))
            for left, right in self._spans(image.width):
                self._blend(row, self._edit_tile(image.crop((left, top, right, bottom))), left, 0)
            self._blend(edit, row, 0, top)
        return edit

    def _blend(self, canvas: Image.Image, piece: Image.Image, left: int, top: int) -> None:
        opacity = np.outer(self._ramp(piece.height, top > 0), self._ramp(piece.width, left > 0))
        canvas.paste(piece, (left, top), Image.fromarray(np.rint(255 * opacity).astype(np.uint8)))

    def _edit_tile(self, image: Image.Image) -> Image.Image:
        if self.fixed_size is None:
            padding = (0, -image.width % self.size_divisor, 0, -image.height % self.size_divisor)
        else:
            padding = (0, self.fixed_size - image.width, 0, self.fixed_size - image.height)
        photo = F.pad(to_tensor(image)[None].to(self.device), padding, mode="replicate")
        with torch.inference_mode():
            edit = self.model(photo)[0]
        return to_image(edit[:, : image.height, : image.width])

    def _spans(self, length: int) -> list[tuple[int, int]]:
        """Cut a side into spans that overlap by ``overlap`` or more, as equal as the divisor allows."""
        if length <= self.tile:
            return [(0, length)]
        gaps = _ceil_division(length - self.tile, self.tile - self.overlap)
        # strides see the same grid in every tile if each starts at a multiple of the divisor
        starts = (
            self.size_divisor * _ceil_division(index * (length - self.tile), gaps * self.size_divisor)
            for index in range(gaps + 1)
        )
        return [(start, min(start + self.tile, length)) for start in starts]

    def _ramp(self, length: int, overlaps: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Opacity along a side of a tile that goes on top of the one before."""
        if not overlaps:
            return np.ones(length)
        quarter = self.overlap / 4
        position = np.clip((np.arange(length) + 0.5 - quarter) / (2 * quarter), 0, 1)
        return position**2 * (3 - 2 * position)


def _ceil_division(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


class _Format(NamedTuple):
    name: str
    options: dict[str, Any]


_PNG = _Format("PNG", {})
_JPEG = _Format("JPEG", {"quality": 95, "subsampling": "4:4:4"})
_TIFF = _Format("TIFF", {})  # with compression, Pillow cannot write the EXIF folder
# the formats that hold a colour profile and EXIF; whatever else can be read is written as PNG
_FORMATS = {
    ".avif": _Format("AVIF", {"quality": 90, "subsampling": "4:4:4"}),
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
    ".png": _PNG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": _Format("WEBP", {"quality": 95}),
}

# a TIFF's other tags say how its pixels were stored, which no longer holds for what is written
_TIFF_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    ExifTags.IFD.Exif,
    ExifTags.IFD.GPSInfo,
}


def edit_files(inputs: Sequence[Path], editor: Editor, out: Path, overwrite: bool = False) -> list[Path]:
    """Edit pictures from disk to disk.

    Names, sub-folders, formats, EXIF and transparency are kept; formats without a colour profile become PNG.
    The pixels are stored upright, with the EXIF orientation set accordingly. A picture in an RGB profile is
    converted back to it; one in a grey or CMYK profile is stored and tagged as sRGB, since the edit is RGB.

    Args:
        inputs: Files, and folders that are searched recursively, without what lies in ``out``.
        editor: Edits each picture.
        out: The folder to write to, made if there is none.
        overwrite: Replace files that exist.

    Returns:
        What was written, in the order of the inputs.

    Raises:
        FileNotFoundError: An input does not exist.
        FileExistsError: Without ``overwrite``, something to be written exists; nothing is written then.
        NotADirectoryError: ``out`` is a file.
        ValueError: A folder holds no picture, two inputs would get one name, or no picture could be read.

    Warns:
        UserWarning: Pictures could not be read, or were converted to 8-bit RGB; it counts and names them.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; give a folder to write the edits to")
    photo_of = _plan(inputs, out)
    existing = [path for path in photo_of if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{len(existing)} of {len(photo_of)} files to write exist: {_shortened(existing)}; "
            "choose another folder, or replace them with overwrite=True (--overwrite)"
        )
    written, skipped, converted = [], [], []
    for path, photo in track(
        photo_of.items(), "Editing", len(photo_of), console=Console(stderr=True), show_speed=False
    ):
        try:
            loaded = load_photo(photo, minimum_side=MINIMUM_SIDE)
            edit = _edit_file(photo, loaded.image, editor, _FORMATS[path.suffix.lower()])
        except UnreadableImageError as error:
            skipped.append(str(error))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, edit)
        written.append(path)
        if kinds := [kind for kind in loaded.conversions if kind != "transparency"]:  # that is kept where it can be
            converted.append(f"{photo}: {', '.join(kinds)}")
    if not written:
        raise ValueError(f"none of {len(skipped)} pictures could be read: {_shortened(skipped)}")
    for what, listed in (("skipped", skipped), ("converted", converted)):
        if listed:
            lines = "\n  ".join(listed)
            warnings.warn(f"{what} {len(listed)} of {len(photo_of)} pictures:\n  {lines}", stacklevel=2)
    return written


def _plan(inputs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Map each file to write to its photo."""
    photo_of: dict[Path, Path] = {}
    for entry in inputs:
        if not entry.exists():
            raise FileNotFoundError(f"{entry} does not exist; check the path")
        folder = entry if entry.is_dir() else entry.parent
        photos = find_images(entry) if entry.is_dir() else [entry]
        if entry.resolve() in out.resolve().parents:
            # a second run must not edit the first one's edits
            photos = [photo for photo in photos if out.resolve() not in photo.resolve().parents]
        for photo in photos:
            path = out / photo.relative_to(folder)
            if path.suffix.lower() not in _FORMATS:
                path = path.with_suffix(".png")
            if path in photo_of:
                raise ValueError(f"{photo_of[path]} and {photo} would both be written to {path}; rename one")
            photo_of[path] = photo
    if not photo_of:
        raise ValueError(
            f"no pictures to edit in {_shortened(inputs)} besides what is in {out}; give files or a folder"
        )
    return photo_of


def _edit_file(path: Path, image: Image.Image, editor: Editor, form: _Format) -> bytes:
    """Edit one file's picture; returns the content of the file to write."""
    edit = editor.edit(image)
    with Image.open(path) as original:
        options = dict(form.options)
        if "icc_profile" in original.info:
            edit, options["icc_profile"] = _in_profile(edit, original.info["icc_profile"])
        # JPEG has no transparency, whatever a file named .jpg holds; load_photo sees none in 16-bit grey
        if original.has_transparency_data and not original.mode.startswith("I") and form is not _JPEG:
            edit.putalpha(ImageOps.exif_transpose(original).convert("RGBA").getchannel("A"))
        if exif := _exif(original):
            options["exif"] = exif
    content = io.BytesIO()
    edit.save(content, form.name, **options)
    return content.getvalue()


def _in_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """Convert an sRGB picture to an RGB profile; leave it and return sRGB's profile if it is none."""
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if target.profile.xcolor_space.strip() == "RGB":
            converted = ImageCms.profileToProfile(image, standard, target, outputMode="RGB")
            assert converted is not None, "only an in-place conversion returns nothing"
            return converted, profile
    except (ImageCms.PyCMSError, OSError):
        pass  # broken, or a scanner's that leads to sRGB but not back
    return image, standard.tobytes()


def _exif(image: Image.Image) -> bytes:
    """Return a picture's EXIF as it holds for upright pixels; empty if there is none."""
    exif = image.getexif()
    if image.format == "TIFF":
        for tag in set(exif) - _TIFF_TAGS:
            del exif[tag]
    if not exif:
        return b""
    exif[ExifTags.Base.Orientation] = 1
    return exif.tobytes()


def _shortened(names: Sequence[object], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + rest
