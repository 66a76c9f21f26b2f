"""Photos from disk to tensors and back."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# Pillow takes 90 megapixels for an attack and warns; panoramas and scans have more. Over 16,384 × 16,384 it still
# warns, over twice that, 1.6 GB as RGB, it refuses.
Image.MAX_IMAGE_PIXELS = 2**28

# what phones and cameras write and Pillow cannot read, or of which it would read a thumbnail
FOREIGN_SUFFIXES = {
    ".arw": "Sony raw",
    ".cr2": "Canon raw",
    ".cr3": "Canon raw",
    ".dng": "DNG raw",
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".nef": "Nikon raw",
    ".orf": "Olympus raw",
    ".raf": "Fujifilm raw",
    ".rw2": "Panasonic raw",
}
# of ISO base media files, after "ftyp"
_FOREIGN_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
    b"avif": "AVIF",  # only where this Pillow was built without it
    b"crx ": "Canon raw",
}
_FOREIGN_BEGINNINGS = {
    b"FUJIFILMCCD-RAW": "Fujifilm raw",
    b"II*\0\x10\0\0\0CR": "Canon raw",
    b"IIRO": "Olympus raw",
    b"IIU\0": "Panasonic raw",
}
_DNG_VERSION_TAG = 50706


class UnreadableImageError(ValueError):
    """A file that cannot be used as a photo; the message names it and says why.

    Attributes:
        path: The file.
        reason: Why it cannot be used, without the file's name.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class LoadedPhoto(NamedTuple):
    """A photo as every part of pocketgan expects it.

    Attributes:
        image: RGB, 8 bit, sRGB, upright.
        conversions: What was unusual and had to be converted for that, for example ("CMYK",). Turning
            upright, plain grey to RGB and a colour profile to sRGB are routine and not named.
    """

    image: Image.Image
    conversions: tuple[str, ...]


def find_images(folder: Path) -> list[Path]:
    """List the images in a folder and the folders below it.

    Args:
        folder: Where to look. Hidden files and folders in it are passed over.

    Returns:
        Sorted paths, each beginning with `folder`, whose suffix, in any case, is one of `IMAGE_SUFFIXES`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is a file, or holds no image; formats of phones and cameras are named.
    """
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist; check the path")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder that holds the images")
    images = find_files(folder, IMAGE_SUFFIXES)
    if not images:
        raise ValueError(nothing_found(folder, "images", IMAGE_SUFFIXES))
    return images


def nothing_found(folder: Path, kind: str, accepted: Collection[str]) -> str:
    """Say that a folder holds none of the accepted files, and which of other formats it holds."""
    message = f"no {kind} in {folder} or the folders below it; accepted are files named {', '.join(sorted(accepted))}"
    if others := find_foreign(folder):
        rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
        message += f"; found and not read ({len(others)}): {', '.join(others[:5])}{rest}"
    return message


def find_foreign(folder: Path) -> list[str]:
    """List the files that only a phone's or a camera's program reads, in a folder and below: "PATH: why", sorted."""
    return [
        f"{path}: {foreign_reason(foreign_format(path) or FOREIGN_SUFFIXES[path.suffix.lower()])}"
        for path in find_files(folder, FOREIGN_SUFFIXES)
    ]


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """List the files of some suffixes, in any case, in a folder and below, sorted; hidden ones are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def foreign_format(path: Path) -> str | None:
    """Name the format of a file that only a phone's or a camera's program reads, by its content or else its suffix.

    Args:
        path: A file that exists.

    Returns:
        Such as "HEIC" or "Nikon raw"; None if it is of none of these. Raw files that are TIFF inside, such as Nikon's
        and Sony's, are known by their suffix alone.
    """
    with path.open("rb") as file:
        beginning = file.read(16)
    if beginning[4:8] == b"ftyp":
        return _FOREIGN_BRANDS.get(beginning[8:12])
    by_content = (name for start, name in _FOREIGN_BEGINNINGS.items() if beginning.startswith(start))
    return next(by_content, None) or FOREIGN_SUFFIXES.get(path.suffix.lower())


def foreign_reason(name: str) -> str:
    """Say what to do about a format that ``foreign_format`` names."""
    how = "export it from the camera maker's or a raw developer's program" if "raw" in name else "convert it"
    hint = "; pip install pillow-heif reads it in Python" if name in {"HEIC", "HEIF"} else ""
    return f"is {name}, which is not read here; {how} as JPEG or PNG{hint}"


def centred_square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of an image, scaled to a side of ``size`` pixels by Lanczos' filter."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def load_photo(path: Path, minimum_side: int = 32) -> LoadedPhoto:
    """Load an image file as upright 8-bit sRGB.

    Of an animation or a file of several pages, the first is taken.

    Args:
        path: The file.
        minimum_side: Least shorter side, in pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it is not an image, is truncated, too small or too large, or of a kind whose
            values have no known range.
    """
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":
                _refuse_raw(path, image)
            if min(image.size) < minimum_side:
                reason = f"{image.width}×{image.height} pixels; the shorter side must be at least {minimum_side}"
                raise UnreadableImageError(path, reason)
            return _standardised(ImageOps.exif_transpose(image), path)
    except (FileNotFoundError, UnreadableImageError):
        raise
    except UnidentifiedImageError as error:
        name = foreign_format(path)
        raise UnreadableImageError(path, foreign_reason(name) if name else "not an image in a known format") from error
    # Pillow's plugins raise these for broken content: OSError for truncation, SyntaxError for PNG chunks, ...
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(path, str(error) or type(error).__name__) from error


def _refuse_raw(path: Path, image: Image.Image) -> None:
    """Refuse a raw file that Pillow takes for a TIFF: it would read the thumbnail."""
    name = "DNG raw" if _DNG_VERSION_TAG in image.getexif() else foreign_format(path)
    if name is not None and "raw" in name:
        raise UnreadableImageError(path, foreign_reason(name))


def as_photo(image: Image.Image) -> Image.Image:
    """Make a picture in memory what ``load_photo`` makes of a file: upright 8-bit sRGB.

    Raises:
        UnreadableImageError: Its values have no known range.
    """
    return _standardised(ImageOps.exif_transpose(image), Path(getattr(image, "filename", "") or "the picture")).image


def transparency(image: Image.Image) -> Image.Image | None:
    """The alpha channel of a picture as it is upright; None where ``load_photo`` sees none, 16-bit grey included."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return None
    return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")


def _standardised(image: Image.Image, path: Path) -> LoadedPhoto:
    conversions = []
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit_grey(image, path)
        conversions.append("16-bit grey")
    if image.mode == "CMYK":
        conversions.append("CMYK")
    if image.mode in {"P", "PA"}:
        conversions.append("palette")
    if image.has_transparency_data:
        image = _on_white(image)
        conversions.append("transparency")
    if image.mode not in {"RGB", "L", "CMYK"}:
        image = image.convert("RGB")
    if profile:
        try:
            image = _in_srgb(image, profile)
        except (ImageCms.PyCMSError, OSError) as error:
            # Cameras and editors do write broken profiles; the pixels are still a photo.
            conversions.append(f"colour profile ignored ({str(error).strip()})")
    return LoadedPhoto(image.convert("RGB"), tuple(conversions))


def _eight_bit_grey(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError(path, f"{image.mode!r} pixels have no known range; save it with 8 or 16 bits")
    # 65535 / 255 = 257; Pillow's own conversion clips at 255 instead of scaling.
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    grey = image.mode in {"1", "L", "LA", "La"}
    layer = image.convert("LA" if grey else "RGBA")
    canvas = Image.new("L" if grey else "RGB", image.size, "white")
    canvas.paste(layer.convert(canvas.mode), mask=layer.getchannel("A"))
    return canvas


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(source).lower() and image.mode in {"RGB", "L"}:
        return image
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "only an in-place conversion returns nothing"
    return converted


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB image into (3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: If the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image is {image.mode}, but RGB is needed; load it with load_photo")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_image(tensor: Tensor) -> Image.Image:
    """Turn (3, H, W) in [-1, 1] into an RGB image, clamped and rounded to the nearest of 256 levels.

    Raises:
        ValueError: If the tensor is not (3, H, W), or not a number anywhere.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"the tensor is {tuple(tensor.shape)}, but one image, (3, H, W), is needed")
    values = tensor.detach().float().cpu()
    if values.isnan().any():
        raise ValueError("the image holds NaN; what made it has diverged or overflowed in 16 bits")
    levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
