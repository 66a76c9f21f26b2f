"""Photos from disk to tensors and back."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


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
        ValueError: If it is a file, or holds no image.
    """
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist; check the path")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder that holds the images")
    images = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not images:
        accepted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"no images in {folder} or the folders below it; accepted are files named {accepted}")
    return sorted(images)


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
            if min(image.size) < minimum_side:
                reason = f"{image.width}×{image.height} pixels; the shorter side must be at least {minimum_side}"
                raise UnreadableImageError(path, reason)
            return _standardised(ImageOps.exif_transpose(image), path)
    except (FileNotFoundError, UnreadableImageError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(path, "not an image in a known format") from error
    # Pillow's plugins raise these for broken content: OSError for truncation, SyntaxError for PNG chunks, ...
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(path, str(error) or type(error).__name__) from error


def as_photo(image: Image.Image) -> Image.Image:
    """Make a picture in memory what ``load_photo`` makes of a file: upright 8-bit sRGB.

    Raises:
        UnreadableImageError: Its values have no known range.
    """
    return _standardised(ImageOps.exif_transpose(image), Path(getattr(image, "filename", "") or "the picture")).image


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
