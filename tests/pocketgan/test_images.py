import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pocketgan.images import UnreadableImageError, find_images, load_photo, to_image, to_tensor


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def test_images_are_found_below_sorted_in_any_case_and_not_hidden(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/d/e.TiFf", ".hidden.png", ".cache/f.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        "a/c.png",
        "a/d/e.TiFf",
        "b.JPG",
    ]


def test_a_hidden_folder_given_itself_is_searched(tmp_path):
    folder = tmp_path / ".photos"
    folder.mkdir()
    (folder / "a.png").touch()
    assert find_images(folder) == [folder / "a.png"]


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no images in .*\.jpg"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        find_images(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_images(tmp_path / "missing")


def test_a_folder_of_a_phones_or_cameras_formats_names_them(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "b.NEF").write_bytes(b"MM\0*" + bytes(100))
    with pytest.raises(
        ValueError,
        match=r"no images in .*\.webp; found and not read \(2\): .*a\.heic: is HEIC, which is not read here; "
        r"convert it as JPEG or PNG.*, .*b\.NEF: is Nikon raw",
    ):
        find_images(tmp_path)
    for index in range(7):
        (tmp_path / f"{index}.dng").touch()
    with pytest.raises(ValueError, match=r"found and not read \(9\): .*0\.dng: is DNG raw.*4\.dng.* and 4 more$"):
        find_images(tmp_path)


def test_a_plain_photo_is_taken_as_it_is(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    image, conversions = load_photo(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert image.tobytes() == picture.tobytes()
    assert conversions == ()


def test_a_photo_is_turned_upright(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    image = load_photo(tmp_path / "a.png").image
    assert image.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    image, conversions = load_photo(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    assert np.abs(np.subtract(image.getpixel((20, 20)), (255, 0, 0), dtype=int)).max() < 5
    assert conversions == ("CMYK",)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 40 * 40).round().astype(np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        image, conversions = load_photo(tmp_path / name)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image)[..., 0], np.rint(values / 257))
        assert conversions == ("16-bit grey",)


def test_transparency_becomes_white(tmp_path):
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 20, 40))
    palette.save(tmp_path / "palette.png", transparency=1)
    image, conversions = load_photo(tmp_path / "palette.png")
    assert image.getpixel((5, 5)) == (255, 255, 255)
    assert image.getpixel((30, 5)) == (255, 0, 0)
    assert conversions == ("palette", "transparency")

    Image.new("RGBA", (40, 40), (0, 0, 0, 128)).save(tmp_path / "rgba.png")
    image, conversions = load_photo(tmp_path / "rgba.png")
    assert image.getpixel((5, 5)) == (127, 127, 127)
    assert conversions == ("transparency",)

    Image.new("LA", (40, 40), (0, 0)).save(tmp_path / "la.png")
    assert load_photo(tmp_path / "la.png").image.getpixel((5, 5)) == (255, 255, 255)


def test_profiles_are_converted_to_srgb(tmp_path, picture):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert load_photo(tmp_path / "srgb.png").conversions == ()

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    picture.save(tmp_path / "mismatch.png", icc_profile=lab)
    picture.save(tmp_path / "broken.png", icc_profile=b"no profile")
    for name in ("mismatch.png", "broken.png"):
        image, (conversion,) = load_photo(tmp_path / name)
        assert image.tobytes() == picture.tobytes()
        assert conversion.startswith("colour profile ignored")


def test_a_profile_with_other_primaries_changes_the_pixels(tmp_path, picture):
    # An sRGB profile whose red and blue primaries change places, under another name of the same length.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * profile[131], 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    profile = bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=profile)
    image, conversions = load_photo(tmp_path / "a.png")
    assert conversions == ()
    red, _, blue = image.getpixel((5, 5))
    assert blue > 200
    assert red < 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "truncated"),
        ("truncated.png", "trunc"),
        ("text.jpg", "not an image"),
        ("empty.png", "not an image"),
        ("pixel.png", "1×1 pixels; the shorter side must be at least 32"),
        ("narrow.png", "1000×31"),
        ("float.tiff", "no known range"),
    ],
)
def test_bad_images_are_named_with_their_reason(tmp_path, picture, name, reason):
    path = tmp_path / name
    if name.startswith("truncated"):
        picture.save(path)
        path.write_bytes(path.read_bytes()[:-600])
    else:
        {
            "text.jpg": lambda: path.write_text("not a photo"),
            "empty.png": path.touch,
            "pixel.png": lambda: Image.new("RGB", (1, 1)).save(path),
            "narrow.png": lambda: Image.new("RGB", (1000, 31)).save(path),
            "float.tiff": lambda: Image.new("F", (40, 40)).save(path),
        }[name]()
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        load_photo(path)
    assert str(path) in str(caught.value)
    assert caught.value.reason
    assert str(path) not in caught.value.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.heic",
            b"\0\0\0\x18ftypheic",
            "is HEIC, which is not read here; convert it as JPEG or PNG; pip",
        ),
        ("heic_named.jpg", b"\0\0\0\x18ftypheix", "is HEIC"),
        ("a.heif", b"\0\0\0\x18ftypmif1", "is HEIF"),
        ("a.heif", b"broken", "is HEIF"),
        ("a.cr3", b"\0\0\0\x18ftypcrx ", "is Canon raw, .*; export it from .* as JPEG or PNG$"),
        ("raf_named.jpg", b"FUJIFILMCCD-RAW 0201", "is Fujifilm raw"),
        ("a.orf", b"IIRO\x08\0\0\0", "is Olympus raw"),
        ("a.rw2", b"IIU\0\x08\0\0\0", "is Panasonic raw"),
        ("a.CR2", b"II*\0\x10\0\0\0CR\x02\0", "is Canon raw"),
        ("a.arw", b"II*\0\x08\0\0\0", "is Sony raw"),
    ],
)
def test_formats_of_phones_and_cameras_are_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content + bytes(100))
    with pytest.raises(UnreadableImageError, match=rf"{name}: .*{reason}"):
        load_photo(tmp_path / name)


def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_photo(tmp_path, picture):
    picture.save(tmp_path / "a.nef", "TIFF")
    picture.save(tmp_path / "named.tif", tiffinfo={50706: b"\1\4\0\0"})
    for name, reason in (("a.nef", "Nikon raw"), ("named.tif", "DNG raw")):
        with pytest.raises(UnreadableImageError, match=rf"{name}: is {reason}"):
            load_photo(tmp_path / name)


def test_what_only_has_the_name_of_such_a_format_is_read(tmp_path, picture):
    picture.save(tmp_path / "a.heic", "PNG")
    assert load_photo(tmp_path / "a.heic").image.tobytes() == picture.tobytes()


def png_header(width, height):
    """A PNG that ends where its pixels should begin."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + content
        + struct.pack(">I", zlib.crc32(content))
        + b"\0\0\0\x0aIDAT"
    )


def test_large_photos_are_read_and_absurd_ones_refused(tmp_path):
    # warnings are errors in these tests: Pillow's of a decompression bomb, too
    Image.new("1", (12000, 12000)).save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (12000, 12000)
    (tmp_path / "absurd.png").write_bytes(png_header(30000, 30000))
    with pytest.raises(UnreadableImageError, match="exceeds limit"):
        load_photo(tmp_path / "absurd.png")


def test_a_missing_file_is_not_called_unreadable(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_photo(tmp_path / "missing.png")


def test_tensor_and_back_is_exact_at_every_level():
    levels = np.tile(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(levels))
    assert tensor.shape == (3, 16, 16)
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert np.array_equal(np.asarray(to_image(tensor)), levels)


def test_to_image_rounds_and_clamps():
    tensor = torch.tensor([-2.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 2.0]).expand(3, 1, 4)
    assert np.asarray(to_image(tensor.bfloat16().float()))[0, 0, 0] == 0
    assert np.asarray(to_image(tensor))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="RGB is needed"):
        to_tensor(Image.new("L", (4, 4)))
    with pytest.raises(ValueError, match="one image"):
        to_image(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.full((3, 4, 4), torch.nan))
