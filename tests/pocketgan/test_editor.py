import errno
import io
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, features
from tiny import CONCEPTS, real_photos
from torch import nn

from pocketgan import editor as editor_module
from pocketgan.editor import Editor, edit_files
from pocketgan.images import load_photo, to_image, to_tensor
from pocketgan.networks import E2GANGenerator, GroupNorm, InstanceNorm

ORIENTATION = ExifTags.Base.Orientation


def identity(photos):
    return photos


def inverted(photos):
    return -photos


def picture(width, height, mode="RGB"):
    """Smooth colours with some noise, so that JPEG keeps them and shifts show."""
    rows, columns = np.mgrid[:height, :width]
    channels = [255 * columns / width, 255 * rows / height, 127 * (1 + np.sin((rows + columns) / 9))]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8)).convert(mode)


def difference(first, second):
    return np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16))


def profile_of(space):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def swapped_primaries():
    """An RGB profile in which the same numbers mean other colours: sRGB's with red and blue changed about."""
    profile = bytearray(profile_of("sRGB"))
    for index in range(int.from_bytes(profile[128:132], "big")):
        tag = slice(132 + 12 * index, 136 + 12 * index)
        names = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
        profile[tag] = names.get(bytes(profile[tag]), bytes(profile[tag]))
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))


class RecordingModel:
    def __init__(self):
        self.shapes = []

    def __call__(self, photos):
        self.shapes.append(tuple(photos.shape))
        return photos


@pytest.fixture
def editor():
    return Editor(inverted, size_divisor=8)


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (47, 301), (301, 47)])
def test_any_size_is_kept_and_padded_for_the_model(size):
    model = RecordingModel()
    edit = Editor(model, size_divisor=64, tile=512).edit(picture(*size))
    assert edit.size == size
    assert not difference(edit, picture(*size)).any()
    assert all(side % 64 == 0 for shape in model.shapes for side in shape[2:])


def test_a_picture_that_is_too_small_or_not_rgb_is_refused(editor):
    with pytest.raises(ValueError, match=r"31×40 pixels.*at least 32"):
        editor.edit(picture(31, 40))
    with pytest.raises(ValueError, match="L, but RGB is needed"):
        editor.edit(picture(40, 40, "L"))


def test_a_tile_that_the_divisor_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="tile 500 is not a multiple of 8; use 496 or 504"):
        Editor(identity, size_divisor=8, tile=500)
    with pytest.raises(ValueError, match="tile 4 is not a multiple of 8; use 8 or 16"):
        Editor(identity, size_divisor=8, fixed_size=4)


def test_tiles_cover_a_large_picture_and_bound_what_the_model_gets():
    model = RecordingModel()
    large = picture(1500, 1100)
    edit = Editor(model, size_divisor=8, tile=512).edit(large)
    assert not difference(edit, large).any()
    assert len(model.shapes) == 4 * 3
    assert max(max(shape[2:]) for shape in model.shapes) <= 512


@pytest.mark.parametrize("length", [513, 520, 897, 1500, 12000])
def test_tiles_overlap_by_a_quarter_and_start_where_strides_do(length):
    spans = Editor(identity, size_divisor=16, tile=512)._spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(start % 16 == 0 and end - start <= 512 for start, end in spans)
    assert all(end - start >= 128 for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_local_network_leaves_no_seam():
    torch.manual_seed(0)
    # sees at most 3 + 4 + 4 pixels to each side, within 256 / 16
    network = nn.Sequential(
        nn.Conv2d(3, 8, 9, padding=4, stride=4),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Upsample(scale_factor=4),
        nn.Conv2d(8, 3, 1),
        nn.Tanh(),
    )
    photo = picture(700, 300)
    tiled = Editor(network, size_divisor=4, tile=256).edit(photo)
    assert difference(tiled, Editor(network, size_divisor=4, tile=1024).edit(photo)).max() <= 1


def test_a_fixed_size_model_gets_only_its_size_and_small_pictures_are_padded():
    model = RecordingModel()
    editor = Editor(model, size_divisor=8, fixed_size=128)
    for size in ((40, 33), (128, 128), (129, 300), (300, 500)):
        photo = picture(*size)
        assert not difference(editor.edit(photo), photo).any()
    assert set(model.shapes) == {(1, 3, 128, 128)}


def test_a_fixed_size_model_edits_like_one_of_any_size():
    torch.manual_seed(0)
    # sees 3 pixels to each side, within 128 / 16
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())
    fixed = Editor(network, size_divisor=8, fixed_size=128)
    for size in ((300, 500), (130, 128)):
        photo = picture(*size)
        tiled, whole = fixed.edit(photo), Editor(network, size_divisor=8, tile=512).edit(photo)
        # at the right and lower edge the one sees a padded picture, the other the convolution's zeros
        inner = (0, 0, size[0] - 3, size[1] - 3)
        assert difference(tiled.crop(inner), whole.crop(inner)).max() <= 1
        same_tile = Editor(network, size_divisor=8, tile=128).edit(photo)
        assert difference(tiled.crop(inner), same_tile.crop(inner)).max() <= 1
    small = picture(50, 90)
    inner = (0, 0, 47, 87)
    padded = fixed.edit(small).crop(inner)
    assert difference(padded, Editor(network, size_divisor=8).edit(small).crop(inner)).max() <= 1


@pytest.mark.parametrize("transposed", [False, True])
def test_a_side_of_12000_pixels_has_no_seam(transposed):
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (weights[:, None] * weights).expand(3, 1, 5, 5)
    shapes = []

    def blurred(photos):
        shapes.append(photos.shape)
        return -F.conv2d(F.pad(photos, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)

    photo = Image.fromarray(np.tile(np.asarray(picture(1000, 640)), (1, 12, 1)))
    if transposed:
        photo = photo.transpose(Image.Transpose.TRANSPOSE)
    tiled = Editor(blurred, size_divisor=8, tile=512).edit(photo)
    # memory is that of a tile; two rows of them make corners where four meet
    assert len(shapes) == 2 * 31
    assert max(side for shape in shapes for side in shape[2:]) == 512
    assert tiled.size == photo.size
    assert difference(tiled, to_image(blurred(to_tensor(photo)[None])[0])).max() <= 1


def trained_generator(norm):
    """The product's generator after some seconds: it edits, and leans on attention and norms as such young ones do."""
    torch.manual_seed(0)
    generator = E2GANGenerator(width=8, token_size=16, norm=norm(), transformer_skip=True)
    tokens = torch.randn(1, 2, 16)
    optimizer = torch.optim.Adam(generator.parameters(), lr=4e-3, betas=(0.5, 0.99))
    photos = torch.stack(real_photos(64, 32))
    edits = torch.stack([CONCEPTS["sepia"](photo) for photo in photos])
    for chosen in torch.randint(0, len(photos), (100, 8)):
        loss = (generator(photos[chosen], tokens.expand(8, -1, -1)) - edits[chosen]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return generator.eval().fold_prompt(tokens)


def edited_side_by_side(network, photo, tile):
    """What tiles without overlap give."""
    edit = Image.new("RGB", photo.size)
    for left, top in itertools.product(range(0, photo.width, tile), range(0, photo.height, tile)):
        box = (left, top, min(left + tile, photo.width), min(top + tile, photo.height))
        edit.paste(Editor(network, size_divisor=8, tile=tile).edit(photo.crop(box)), (left, top))
    return edit


def seams(edit, borders, photo, shift):
    """How an edit changes from pixel to pixel at the borders of tiles, against the same places inside of a tile.

    The photo is edited twice, the second time without ``shift`` pixels at the left and the top: borders move over it.

    Args:
        edit: Of a photo.
        borders: Of a side's length in pixels: which steps from a pixel to the next are at a border.
        photo: That is edited.
        shift: In pixels.

    Returns:
        Mean change at the borders, and at the corners where four tiles meet, as a multiple of that inside; and the
        largest excess of one row or column at the borders, as a multiple of the mean change.
    """
    part = photo.crop((shift, shift, *photo.size))
    edits = [np.asarray(edit(photo), float)[shift:, shift:], np.asarray(edit(part), float)]
    marked = [[borders(side)[shift:], borders(side - shift)] for side in (photo.height, photo.width)]
    found = {"border": [], "corner": [], "excess": []}
    for axis in (0, 1):
        changes = [np.abs(np.diff(each, axis=axis)).mean(2) for each in edits]
        lines = [change.mean(1 - axis) for change in changes]
        spots = [
            [np.append(marks, False)[:side] for marks, side in zip(both, changes[0].shape, strict=True)]
            for both in zip(*marked, strict=True)
        ]
        at, inside, corner, corner_inside = [], [], [], []
        for one, other in ((0, 1), (1, 0)):
            alone = marked[axis][one] & ~marked[axis][other]
            at.append(lines[one][alone])
            inside.append(lines[other][alone])
            rows, columns = spots[other]
            crossing = np.outer(*spots[one]) & ~(rows[:, None] | columns)
            corner.append(changes[one][crossing])
            corner_inside.append(changes[other][crossing])
        at, inside, corner, corner_inside = map(np.concatenate, (at, inside, corner, corner_inside))
        found["border"].append(at.mean() / inside.mean())
        found["corner"].append(corner.mean() / corner_inside.mean())
        found["excess"].append((at - inside).max() / np.mean(changes))
    return found


@pytest.mark.parametrize("norm", [InstanceNorm, GroupNorm])
def test_the_products_generator_leaves_no_seam_where_tiles_and_their_corners_meet(norm):
    network, tile = trained_generator(norm), 128
    editor = Editor(network, size_divisor=8, tile=tile)

    def overlaps(length):
        steps = np.zeros(length - 1, bool)
        for (_, end), (start, _) in itertools.pairwise(editor._spans(length)):
            steps[start - 1 : end] = True
        return steps

    def joints(length):
        return np.arange(1, length) % tile == 0

    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg") as opened:
        photo = opened.convert("RGB").crop((0, 59, 464, 427))
    tiled = seams(editor.edit, overlaps, photo, 48)
    assert max(*tiled["border"], *tiled["corner"]) < 1.25
    assert max(tiled["excess"]) < 1.5
    # the measure sees seams: without overlap there are some
    side_by_side = seams(lambda picture: edited_side_by_side(network, picture, tile), joints, photo, 48)
    assert min(*side_by_side["border"], *side_by_side["corner"]) > 2
    assert min(side_by_side["excess"]) > 3


@pytest.mark.parametrize("tile", [8, 16, 24, 40, 56, 104])
def test_any_multiple_of_the_divisor_is_a_tile(tile):
    editor = Editor(identity, size_divisor=8, fixed_size=tile)
    assert tile / 4 <= editor.overlap <= tile / 2
    for length in range(tile + 1, 5 * tile):
        spans = editor._spans(length)
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(start % 8 == 0 or tile == 8 for start, _ in spans)
        assert all(end - start <= tile for start, end in spans)
        assert all(end - start >= editor.overlap for (_, end), (start, _) in itertools.pairwise(spans))
    model = RecordingModel()
    photo = picture(4 * tile + 5, 4 * tile + 3)
    edit = Editor(model, size_divisor=8, fixed_size=tile).edit(photo)
    assert not difference(edit, photo).any()
    assert set(model.shapes) == {(1, 3, tile, tile)}


@pytest.mark.parametrize("tile", [40, 104])
def test_a_local_network_leaves_no_seam_in_tiles_of_any_size(tile):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 5, padding=2)  # sees 2 pixels to each side, within 40 / 16
    photo = picture(3 * tile + 5, 2 * tile + 3)
    tiled = Editor(network, size_divisor=8, fixed_size=tile).edit(photo)
    inner = (0, 0, photo.width - 2, photo.height - 2)  # beyond, the one sees padding and the other zeros
    assert difference(tiled.crop(inner), Editor(network, size_divisor=8).edit(photo).crop(inner)).max() <= 1


@pytest.mark.parametrize("tile", [40, 104, 128])
def test_tiles_that_disagree_are_blended_smoothly_at_any_size(tile):
    brightness = itertools.cycle([-0.2, 0.2])
    editor = Editor(lambda photos: torch.full_like(photos, next(brightness)), size_divisor=8, fixed_size=tile)
    row = np.asarray(editor.edit(picture(3 * tile, tile)), int)[0, :, 0]
    assert np.ptp(row) == 51, "the tiles differ"
    # the ramp's steepest step is 1.5 of an even one over half the overlap
    assert np.abs(np.diff(row)).max() <= 1.5 * 51 / (editor.overlap / 2) + 1


def test_tiles_that_disagree_are_blended_smoothly():
    brightness = iter(torch.linspace(-1, 1, 6))
    editor = Editor(lambda photos: torch.full_like(photos, next(brightness)), size_divisor=8, tile=128)
    edit = editor.edit(picture(224, 320))
    # neighbours differ by 51 and 102 levels
    assert difference(edit.crop((1, 0, 224, 320)), edit.crop((0, 0, 223, 320))).max() <= 20
    assert difference(edit.crop((0, 1, 224, 320)), edit.crop((0, 0, 224, 319))).max() <= 20


@pytest.mark.filterwarnings("ignore:converted")
def test_folders_keep_their_structure_names_and_formats(tmp_path, editor):
    photos = tmp_path / "photos"
    (photos / "trip" / "day 1").mkdir(parents=True)
    names = ["a.jpg", "b.PNG", "trip/c.webp", "trip/day 1/d.tiff", "trip/e.bmp"]
    if features.check("avif"):
        names.append("f.avif")
    for name in names:
        picture(64, 48).save(photos / name)
    picture(40, 40).save(tmp_path / "single.gif")
    written = edit_files([photos, tmp_path / "single.gif"], editor, tmp_path / "out")
    expected = {name.replace(".bmp", ".png") for name in names} | {"single.png"}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == expected
    assert all(path.is_file() for path in written)
    for name in names:
        path = tmp_path / "out" / name.replace(".bmp", ".png")
        assert difference(load_photo(path).image, editor.edit(load_photo(photos / name).image)).mean() < 3
    with Image.open(tmp_path / "out" / "a.jpg") as jpeg:
        assert jpeg.format == "JPEG"
        assert [layer[1:3] for layer in jpeg.layer] == [(1, 1)] * 3, "4:4:4"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_the_orientation_is_right_and_other_exif_kept(tmp_path, editor, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[ExifTags.Base.Model] = "Pocket Camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] = "35 mm"
    path = tmp_path / f"turned{suffix}"
    picture(64, 40).save(path, exif=exif.tobytes())
    (written,) = edit_files([path], editor, tmp_path / "out")
    with Image.open(written) as edit:
        assert edit.size == (40, 64)
        assert edit.getexif()[ORIENTATION] == 1
        assert edit.getexif()[ExifTags.Base.Model] == "Pocket Camera"
        assert edit.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] == "35 mm"
        assert difference(edit.convert("RGB"), editor.edit(load_photo(path).image)).mean() < 4


def test_an_rgb_profile_is_kept_and_the_colours_look_as_before(tmp_path):
    photo, profile = picture(64, 48), swapped_primaries()
    photo.save(tmp_path / "a.png", icc_profile=profile)
    assert difference(load_photo(tmp_path / "a.png").image, photo).mean() > 20, "the profile matters"
    (written,) = edit_files([tmp_path / "a.png"], Editor(identity, size_divisor=8), tmp_path / "out")
    with Image.open(written) as edit:
        assert edit.info["icc_profile"] == profile
    assert difference(load_photo(written).image, load_photo(tmp_path / "a.png").image).max() <= 2


@pytest.mark.filterwarnings("ignore:converted")
@pytest.mark.parametrize("profile", ["LAB", "broken"])
def test_a_profile_that_is_not_rgb_becomes_srgb(tmp_path, editor, profile):
    content = b"broken" if profile == "broken" else profile_of(profile)
    picture(64, 48).save(tmp_path / "a.png", icc_profile=content)
    (written,) = edit_files([tmp_path / "a.png"], editor, tmp_path / "out")
    with Image.open(written) as edit:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(edit.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(embedded)
        assert not difference(edit, editor.edit(load_photo(tmp_path / "a.png").image)).any()


@pytest.mark.filterwarnings("ignore:converted")
@pytest.mark.parametrize("strength", [1, 0.3])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".webp"), ("P", ".png"), ("RGBA", ".tif"), ("LA", ".tif")],
)
def test_transparency_is_kept(tmp_path, editor, mode, suffix, strength):
    alpha = Image.linear_gradient("L").resize((64, 48))
    photo = picture(64, 48)
    if mode == "P":
        photo.quantize(16).save(tmp_path / "a.png", transparency=3)
    else:
        photo = photo.convert(mode)
        photo.putalpha(alpha)
        photo.save(tmp_path / f"a{suffix}", lossless=True)  # only WebP heeds it
    path = tmp_path / f"a{suffix}"
    (written,) = edit_files([path], editor, tmp_path / "out", strength=strength)
    with Image.open(path) as original, Image.open(written) as edit:
        assert edit.mode == "RGBA"
        assert not difference(edit.getchannel("A"), original.convert("RGBA").getchannel("A")).any()
        if suffix != ".webp":  # which drops colours that nobody sees
            assert not difference(edit.convert("RGB"), editor.edit(load_photo(path).image, strength)).any()


def test_strength_goes_from_the_photo_to_the_edit(tmp_path, editor):
    photo = picture(64, 48)
    assert editor.edit(photo, 0).tobytes() == photo.tobytes()
    mixed = np.asarray(editor.edit(photo, 0.25), np.float64)
    expected = 0.75 * np.asarray(photo, np.float64) + 0.25 * np.asarray(editor.edit(photo), np.float64)
    assert np.abs(mixed - expected).max() <= 1
    photo.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"strength is -0.5; give a share from 0, the photo, to 1"):
        edit_files([tmp_path / "a.png"], editor, tmp_path / "out", strength=-0.5)


@pytest.mark.filterwarnings("ignore:skipped")
def test_jobs_change_neither_files_nor_order(tmp_path):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        picture(64 + 40 * (index % 3), 48 + index).save(photos / f"{index:02}.{'png' if index % 2 else 'jpg'}")
    (photos / "05.png").write_bytes(b"broken")
    written = {}
    for jobs in (1, 4):
        out = tmp_path / str(jobs)
        written[jobs] = [
            (path.relative_to(out), path.read_bytes())
            for path in edit_files([photos], Editor(network, size_divisor=8, tile=64), out, jobs=jobs)
        ]
    assert written[1] == written[4]
    assert [path.stem for path, _ in written[4]] == [f"{index:02}" for index in range(12) if index != 5]
    with pytest.raises(ValueError, match="0 jobs can edit nothing; give 1 or more"):
        edit_files([photos], Editor(network, size_divisor=8), tmp_path / "out", jobs=0)


def test_pictures_are_edited_at_the_same_time(tmp_path):
    both = threading.Barrier(2, timeout=20)

    def model(photos):
        both.wait()  # breaks unless two come
        return photos

    for name in "ab":
        picture(32, 32).save(tmp_path / f"{name}.png")
    assert len(edit_files([tmp_path], Editor(model, size_divisor=8), tmp_path / "out", jobs=2)) == 2


def test_an_error_ends_all_jobs(tmp_path, monkeypatch):
    calls, cancelled = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait)

    def model(photos):
        calls.append(photos)
        if len(calls) == 1:
            raise KeyboardInterrupt
        assert cancelled.wait(20)
        return photos

    monkeypatch.setattr(editor_module, "ThreadPoolExecutor", Pool)
    for index in range(40):
        picture(32, 32).save(tmp_path / f"{index}.png")
    with pytest.raises(KeyboardInterrupt):
        edit_files([tmp_path], Editor(model, size_divisor=8), tmp_path / "out", jobs=2)
    assert len(calls) <= 3


def test_formats_of_phones_and_cameras_are_named(tmp_path, editor):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (photos / "b.nef").write_bytes(b"MM\0*" + bytes(100))
    picture(32, 32).save(photos / "c.png")
    with pytest.warns(UserWarning, match=r"(?s)passed over 2 of 3 pictures:.*a\.heic: is HEIC.*b\.nef: is Nikon raw"):
        assert edit_files([photos], editor, tmp_path / "out") == [tmp_path / "out" / "c.png"]
    with pytest.raises(ValueError, match=r"a\.heic: is HEIC, which is not read here; convert it as JPEG or PNG"):
        edit_files([photos / "a.heic"], editor, tmp_path / "out")
    (photos / "c.png").unlink()
    with pytest.raises(ValueError, match=r"no images or videos in .*; found and not read \(2\): .*a\.heic: is HEIC"):
        edit_files([photos], editor, tmp_path / "out")


def test_transparency_in_a_png_named_jpg_is_dropped(tmp_path, editor):
    picture(64, 48, "RGBA").save(tmp_path / "a.jpg", format="PNG")
    (written,) = edit_files([tmp_path / "a.jpg"], editor, tmp_path / "out")
    with Image.open(written) as edit:
        assert (edit.format, edit.mode) == ("JPEG", "RGB")


def test_cmyk_16_bit_and_palette_pictures_become_rgb(tmp_path, editor):
    picture(64, 48, "CMYK").save(tmp_path / "cmyk.jpg")
    picture(64, 48, "CMYK").save(tmp_path / "cmyk.tif", compression="tiff_lzw")
    picture(64, 48, "P").save(tmp_path / "palette.png")
    grey = np.asarray(picture(64, 48, "L"), np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    with pytest.warns(UserWarning, match=r"(?s)converted 5 of 5 pictures:.*cmyk\.jpg: CMYK.*grey\.png: 16-bit grey"):
        written = edit_files([tmp_path], editor, tmp_path / "out")
    assert len(written) == 5
    for path in written:
        with Image.open(path) as edit:
            assert edit.mode == "RGB"
            photo = load_photo(tmp_path / path.name).image
            assert difference(edit, editor.edit(photo)).mean() < 4


def test_what_exists_is_refused_before_anything_is_written(tmp_path, editor):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    out.mkdir()
    for index in range(8):
        picture(32, 32).save(photos / f"{index}.png")
        if index:
            (out / f"{index}.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"7 of 8 .*1\.png.*5\.png and 2 more.*--overwrite") as caught:
        edit_files([photos], editor, out)
    assert "6.png" not in str(caught.value)
    assert not (out / "0.png").exists()
    assert (out / "7.png").read_bytes() == b"precious"
    assert len(edit_files([photos], editor, out, overwrite=True)) == 8
    assert (out / "7.png").read_bytes() != b"precious"


def test_photos_are_not_replaced_by_their_edits_unasked(tmp_path, editor):
    picture(32, 32).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileExistsError, match="1 of 1"):
        edit_files([tmp_path], editor, tmp_path)
    assert (tmp_path / "a.png").read_bytes() == before


def test_two_inputs_of_one_name_are_refused(tmp_path, editor):
    for name in ("a/x.gif", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        picture(32, 32).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"x\.gif and .*x\.png would both be written to .*x\.png"):
        edit_files([tmp_path / "a" / "x.gif", tmp_path / "b"], editor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_run_passes_over_the_edits_of_the_first(tmp_path, editor):
    picture(32, 32).save(tmp_path / "a.png")
    out = tmp_path / "edited"
    assert edit_files([tmp_path], editor, out) == [out / "a.png"]
    assert edit_files([tmp_path], editor, out, overwrite=True) == [out / "a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no pictures to edit"):
        edit_files([tmp_path], editor, out, overwrite=True)


def test_unreadable_pictures_are_skipped_counted_and_named(tmp_path, editor):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(64, 64).save(photos / "good.jpg")
    (photos / "truncated.jpg").write_bytes((photos / "good.jpg").read_bytes()[:800])
    picture(1, 1).save(photos / "dot.png")
    with pytest.warns(UserWarning, match=r"(?s)skipped 2 of 3 pictures:.*dot\.png: 1×1.*truncated\.jpg"):
        assert edit_files([photos], editor, tmp_path / "out") == [tmp_path / "out" / "good.jpg"]
    (photos / "good.jpg").unlink()
    with pytest.raises(ValueError, match="none of 2 pictures could be read"):
        edit_files([photos], editor, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_inputs_that_are_not_there_are_named(tmp_path, editor):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        edit_files([tmp_path / "absent"], editor, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images or videos in .*empty"):
        edit_files([tmp_path / "empty"], editor, tmp_path / "out")
    picture(32, 32).save(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file"):
        edit_files([tmp_path / "a.png"], editor, tmp_path / "a.png")


def test_a_full_disk_leaves_no_partial_file(tmp_path, editor, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    picture(32, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="free some space"):
        edit_files([tmp_path / "a.png"], editor, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
