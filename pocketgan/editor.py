"""Photos through a network at their own size, and files to files."""

import io
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms
from rich.console import Console
from rich.progress import Progress, track
from torch import Tensor

from pocketgan.exporters.exporter import require
from pocketgan.files import write_whole
from pocketgan.images import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    find_files,
    find_foreign,
    load_photo,
    nothing_found,
    to_image,
    to_tensor,
    transparency,
)
from pocketgan.video import VIDEO_SUFFIXES, UnreadableVideoError, edit_video, video_name, video_progress

MINIMUM_SIDE = 32


class Editor:
    """Edits pictures of any size with a network that wants multiples of its divisor.

    A picture of more than ``tile`` pixels a side is edited in tiles that overlap by a quarter or more and are blended
    by a smooth ramp. The outer quarters of each overlap are dropped, so that a network which looks no further
    than ``tile / 16`` pixels leaves no seam. What tiling cannot do: attention and norms over the whole picture see one
    tile, so that neighbours may differ in tone, smoothly; a larger tile serves them better.

    Args:
        model: (B, 3, H, W) in [-1, 1] to the same: an ``ExportedModel``, or a network in eval mode.
        size_divisor: Height and width of what the model gets are multiples of this many pixels.
        tile: Largest side in pixels that the model gets. Attention's memory grows with its fourth power: with
            ONNX Runtime, a generator of width 64 takes 1.1 GB at 512, 3.7 GB at 768 and 10.7 GB at 1024.
        device: Where the model is.
        fixed_size: The one height and width that the model takes; tiles are of this size then, and smaller pictures are
            padded to it. None if it takes any that ``size_divisor`` divides.

    Raises:
        ValueError: ``tile``, or ``fixed_size``, is not a multiple of ``size_divisor``, or below 4.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        size_divisor: int,
        tile: int = 512,
        device: torch.device | str = "cpu",
        fixed_size: int | None = None,
    ) -> None:
        tile = fixed_size or tile
        if tile < 4 or tile % size_divisor:
            below = max(tile // size_divisor, _ceil_division(4, size_divisor)) * size_divisor
            raise ValueError(f"tile {tile} is not a multiple of {size_divisor}; use {below} or {below + size_divisor}")
        self.model, self.size_divisor, self.tile, self.device = model, size_divisor, tile, device
        # strides see the same grid in every tile if each starts at a multiple of the divisor, for which a tile of one
        # divisor has no room
        self._step = size_divisor if tile > size_divisor else tile // 4
        self.overlap = self._step * _ceil_division(tile, 4 * self._step)
        self.fixed_size = fixed_size

    def edit(self, image: Image.Image, strength: float = 1.0) -> Image.Image:
        """Edit a picture at its own size.

        Args:
            image: RGB, sRGB, upright; ``load_photo`` makes it so.
            strength: Share of the edit in the result, 0 to 1; the rest is the picture.

        Returns:
            RGB, of the picture's size.

        Raises:
            ValueError: A side is shorter than 32 pixels, the picture is not RGB, or there is no such share.
        """
        check_strength(strength)
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
        return edit if strength == 1 else Image.blend(image, edit, strength)

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
        """Cut a side into spans that overlap by ``overlap`` or more, as equal as the step allows."""
        if length <= self.tile:
            return [(0, length)]
        gaps = _ceil_division(length - self.tile, self.tile - self.overlap)
        starts = (
            self._step * _ceil_division(index * (length - self.tile), gaps * self._step) for index in range(gaps + 1)
        )
        return [(start, min(start + self.tile, length)) for start in starts]

    def _ramp(self, length: int, overlaps: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Opacity along a side of a tile that goes on top of the one before."""
        if not overlaps:
            return np.ones(length)
        quarter = self.overlap / 4
        position = np.clip((np.arange(length) + 0.5 - quarter) / (2 * quarter), 0, 1)
        return position**2 * (3 - 2 * position)


def check_strength(strength: float) -> None:
    """Refuse a share of the edit that is none.

    Raises:
        ValueError: It is not in [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength:g}; give a share from 0, the photo, to 1, the whole edit")


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


class _Edited(NamedTuple):
    """What came of one input.

    Attributes:
        problem: Why it was skipped; empty if it was not.
        conversions: What had to be converted to 8-bit RGB.
    """

    problem: str = ""
    conversions: tuple[str, ...] = ()


def edit_files(
    inputs: Sequence[Path],
    editor: Editor,
    out: Path,
    overwrite: bool = False,
    strength: float = 1.0,
    jobs: int = 2,
) -> list[Path]:
    """Edit pictures and videos from disk to disk.

    Names, sub-folders, formats, EXIF and transparency are kept; formats without a colour profile become PNG, containers
    that ``edit_video`` does not write MP4. The pixels are stored upright, with the EXIF orientation set accordingly. A
    picture in an RGB profile is converted back to it; one in a grey or CMYK profile is stored and tagged as sRGB, since
    the edit is RGB.

    Args:
        inputs: Files, and folders that are searched recursively, without what lies in ``out``.
        editor: Edits each picture.
        out: The folder to write to, made if there is none.
        overwrite: Replace files that exist.
        strength: Share of the edit in the result, 0 to 1; the rest is the photo.
        jobs: How many pictures are loaded, edited and saved at a time, and after them how many videos; the files do not
            depend on it. Each takes the memory of a tile in the model.

    Returns:
        What was written, in the order of the inputs.

    Raises:
        FileNotFoundError: An input does not exist.
        FileExistsError: Without ``overwrite``, something to be written exists; nothing is written then.
        ImportError: There are videos, and PyAV is not installed.
        NotADirectoryError: ``out`` is a file.
        ValueError: A folder holds no picture and no video, two inputs would get one name, none could be read, or
            ``strength`` or ``jobs`` is out of range.

    Warns:
        UserWarning: Inputs could not be read, were converted to 8-bit RGB, or a folder holds formats that are not read;
            it counts and names them.
    """
    check_strength(strength)
    if jobs < 1:
        raise ValueError(f"{jobs} jobs can edit nothing; give 1 or more")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; give a folder to write the edits to")
    source_of, passed_over = _plan(inputs, out)
    existing = [path for path in source_of if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{len(existing)} of {len(source_of)} files to write exist: {_shortened(existing)}; "
            "choose another folder, or replace them with overwrite=True (--overwrite)"
        )
    videos = {path: source for path, source in source_of.items() if source.suffix.lower() in VIDEO_SUFFIXES}
    if videos:
        require("av", "Editing videos", "video")  # before minutes of pictures
    pictures = {path: source for path, source in source_of.items() if path not in videos}
    edited = {**_edit_pictures(pictures, editor, strength, jobs), **_edit_videos(videos, editor, strength, jobs)}
    written = [path for path in source_of if not edited[path].problem]
    skipped = [edited[path].problem for path in source_of if edited[path].problem]
    if not written:
        raise ValueError(f"none of {len(skipped)} {_kinds(pictures, videos)} could be read: {_shortened(skipped)}")
    converted = [
        f"{source}: {', '.join(edited[path].conversions)}"
        for path, source in source_of.items()
        if edited[path].conversions
    ]
    for what, listed, number in (
        ("skipped", skipped, len(source_of)),
        ("converted", converted, len(source_of)),
        ("passed over", passed_over, len(source_of) + len(passed_over)),
    ):
        if listed:
            lines = "\n  ".join(listed)
            warnings.warn(f"{what} {len(listed)} of {number} {_kinds(pictures, videos)}:\n  {lines}", stacklevel=2)
    return written


def _kinds(pictures: Collection[Path], videos: Collection[Path]) -> str:
    return " and ".join(name for name, paths in (("pictures", pictures), ("videos", videos)) if paths)


def _edit_pictures(pictures: dict[Path, Path], editor: Editor, strength: float, jobs: int) -> dict[Path, _Edited]:
    """Edit photos by the file to write, several at a time."""

    def edit(entry: tuple[Path, Path]) -> _Edited:
        path, photo = entry
        try:
            loaded = load_photo(photo, minimum_side=MINIMUM_SIDE)
            content = _edit_file(photo, loaded.image, editor, strength, _FORMATS[path.suffix.lower()])
        except UnreadableImageError as error:
            return _Edited(str(error))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        # transparency is kept where it can be
        return _Edited(conversions=tuple(kind for kind in loaded.conversions if kind != "transparency"))

    if not pictures:
        return {}
    pool = ThreadPoolExecutor(jobs, "edit")
    try:
        results = track(
            pool.map(edit, pictures.items()),
            "Editing",
            len(pictures),
            console=Console(stderr=True),
            show_speed=False,
        )
        return dict(zip(pictures, results, strict=True))
    finally:
        # after an error or Ctrl-C those that wait are not begun
        pool.shutdown(cancel_futures=True)


def _edit_videos(videos: dict[Path, Path], editor: Editor, strength: float, jobs: int) -> dict[Path, _Edited]:
    """Edit videos by the file to write, several at a time: the model of one works while others convert and encode."""
    stopped = Event()

    def edit(path: Path, source: Path, progress: Progress) -> _Edited:
        try:
            edit_video(source, editor, path, strength, progress, stopped)
        except UnreadableVideoError as error:
            return _Edited(str(error))
        return _Edited()

    if not videos:
        return {}
    edited = {}
    pool = ThreadPoolExecutor(jobs, "video")
    with video_progress() as progress:
        task = progress.add_task("Videos", total=len(videos), visible=len(videos) > 1)
        path_of = {pool.submit(edit, path, source, progress): path for path, source in videos.items()}
        try:
            for future in as_completed(path_of):
                edited[path_of[future]] = future.result()
                progress.advance(task)
        finally:
            # after an error or Ctrl-C those that run, perhaps for hours, are broken off, and the others not begun
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return edited


def _plan(inputs: Sequence[Path], out: Path) -> tuple[dict[Path, Path], list[str]]:
    """Map each file to write to its photo or video, and say what in folders is of a format that is not read."""
    source_of: dict[Path, Path] = {}
    passed_over: list[str] = []
    for entry in inputs:
        if not entry.exists():
            raise FileNotFoundError(f"{entry} does not exist; check the path")
        folder, sources = entry.parent, [entry]
        if entry.is_dir():
            folder, sources = entry, find_files(entry, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            if not sources:
                raise ValueError(nothing_found(entry, "images or videos", IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            passed_over += find_foreign(entry)
        if entry.resolve() in out.resolve().parents:
            # a second run must not edit the first one's edits
            sources = [source for source in sources if out.resolve() not in source.resolve().parents]
        for source in sources:
            path = out / source.relative_to(folder)
            if source.suffix.lower() in VIDEO_SUFFIXES:
                path = path.with_name(video_name(path.name))
            elif path.suffix.lower() not in _FORMATS:
                path = path.with_suffix(".png")
            if path in source_of:
                raise ValueError(f"{source_of[path]} and {source} would both be written to {path}; rename one")
            source_of[path] = source
    if not source_of:
        raise ValueError(
            f"no pictures to edit in {_shortened(inputs)} besides what is in {out}; give files or a folder"
        )
    return source_of, passed_over


def _edit_file(path: Path, image: Image.Image, editor: Editor, strength: float, form: _Format) -> bytes:
    """Edit one file's picture; returns the content of the file to write."""
    edit = editor.edit(image, strength)
    with Image.open(path) as original:
        options = dict(form.options)
        if "icc_profile" in original.info:
            edit, options["icc_profile"] = _in_profile(edit, original.info["icc_profile"])
        # JPEG has no transparency, whatever a file named .jpg holds
        if form is not _JPEG and (alpha := transparency(original)) is not None:
            edit.putalpha(alpha)
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
