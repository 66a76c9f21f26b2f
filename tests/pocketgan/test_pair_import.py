"""A user's own pairs become a pair set."""

import pytest
from PIL import Image
from tiny import fit_base, real_photos

from lightning_modules import load_run
from pocketgan.cli import main
from pocketgan.images import load_photo, to_image, to_tensor
from pocketgan.pair_import import find_pairs, import_pairs
from pocketgan.pair_set import read_manifest, read_pairs, set_hash


def make_source(root, concepts=("sepia", "night"), count=4):
    """Photos of 48x40 px, edits of the same size; the names' suffixes differ."""
    for number, photo in enumerate(real_photos(count, 48)):
        picture = photo[:, :40]
        (root / "photos").mkdir(parents=True, exist_ok=True)
        to_image(picture).save(root / "photos" / f"my photo {number}.png")
        for place, concept in enumerate(concepts):
            folder = root / "edits" / concept if concept else root / "edits"
            folder.mkdir(parents=True, exist_ok=True)
            to_image(picture * (0.5 - place)).save(folder / f"my photo {number}.webp", lossless=True)
    return root


def test_pairs_are_those_of_the_files(tmp_path):
    source = make_source(tmp_path / "mine")
    count, left_out = import_pairs(source, tmp_path / "set", prompts={"night": "at night"}, size=32)
    assert (count, left_out) == (8, {})
    pairs = read_pairs(tmp_path / "set")
    assert {pair.concept: pair.prompt for pair in pairs} == {"night": "at night", "sepia": "sepia"}
    assert len(list((tmp_path / "set" / "photos").iterdir())) == 4
    photo, edit = (
        to_tensor(load_photo(tmp_path / "set" / name).image)
        for name in (pairs[-1].photo_file_name, pairs[-1].edit_file_name)
    )
    assert photo.shape == (3, 32, 32)
    assert (edit - photo * 0.5).abs().mean() < 0.01  # sepia, cut and scaled as its photo
    assert read_manifest(tmp_path / "set")["teacher"] == {"name": "import"}


def test_prompts_come_from_a_file(tmp_path):
    source = make_source(tmp_path / "mine")
    (tmp_path / "prompts.yaml").write_text("night: at night\n")
    main(["pairs", "import", str(source), "--out=set", "--prompts=prompts.yaml", "--size=32"])
    assert {pair.concept: pair.prompt for pair in read_pairs(tmp_path / "set")} == {
        "night": "at night",
        "sepia": "sepia",
    }
    main(["pairs", "import", str(source), "--out=other", "--prompts={sepia: brown}", "--size=32"])
    assert {pair.prompt for pair in read_pairs(tmp_path / "other")} == {"night", "brown"}


def test_broken_off_it_goes_on_to_the_same_set(tmp_path, monkeypatch):
    source = make_source(tmp_path / "mine")
    import_pairs(source, tmp_path / "whole", size=32)
    seen, load = [], load_photo

    def breaks_off(file, minimum_side):
        seen.append(file)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return load(file, minimum_side)

    monkeypatch.setattr("pocketgan.pair_import.load_photo", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        import_pairs(source, tmp_path / "parts", size=32)
    import_pairs(source, tmp_path / "parts", size=32)
    assert len(seen) == 7 + 2 * 5  # three pairs were complete
    assert set_hash(tmp_path / "parts") == set_hash(tmp_path / "whole")


def test_a_gan_trains_on_it(tmp_path, capsys):
    source = make_source(tmp_path / "mine", ("",), 10)
    main(["pairs", "import", str(source), f"--out={tmp_path / 'set'}", "--concept=sepia", "--size=32"])
    assert f"{tmp_path / 'set'} holds 10 pairs, 0 were left out" in capsys.readouterr().out
    fit_base(tmp_path / "set", tmp_path / "run", "--data.concepts=[sepia]", "--budget.images=4")
    assert load_run(tmp_path / "run").concepts == ["sepia"]


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    source = make_source(tmp_path / "mine", ("sepia",))
    Image.new("RGB", (40, 48)).save(source / "edits" / "sepia" / "my photo 0.webp")
    (source / "edits" / "sepia" / "my photo 1.webp").write_bytes(b"no picture")
    count, left_out = import_pairs(source, tmp_path / "set", size=32)
    assert count == 2
    reasons = sorted(left_out.values())
    assert reasons[0].endswith("my photo 0.webp: 40×48, its photo 48×40; both must be of one size")
    assert reasons[1].endswith("my photo 1.webp: not an image in a known format")
    with pytest.raises(ValueError, match=r"no pair can be used:\n .* must be at least 64"):
        import_pairs(source, tmp_path / "large", size=64)


def test_refusals(tmp_path):
    source = make_source(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="is no folder; give one that holds photos/ and edits/"):
        find_pairs(tmp_path, None)
    with pytest.raises(ValueError, match=r"the concepts are named by the folders of .*; leave --concept out"):
        find_pairs(source, "sepia")
    flat = make_source(tmp_path / "flat", ("",))
    with pytest.raises(ValueError, match="have no name; give one with --concept"):
        find_pairs(flat, None)
    with pytest.raises(ValueError, match="prompts name day; the concepts are night, sepia"):
        import_pairs(source, tmp_path / "set", prompts={"day": "by day"})
    (source / "photos" / "my photo 0.png").rename(source / "photos" / "other.png")
    with pytest.raises(ValueError, match=r"2 edits have no photo of their name in .*, such as .*my photo 0\.webp"):
        find_pairs(source, None)
    to_image(real_photos(1, 48)[0]).save(source / "photos" / "my photo 1.jpg")
    with pytest.raises(ValueError, match="have one name; rename one"):
        find_pairs(source, None)
    (flat / "edits" / "folder").mkdir()
    to_image(real_photos(1, 48)[0]).save(flat / "edits" / "folder" / "my photo 0.png")
    with pytest.raises(ValueError, match="holds pictures and folders"):
        find_pairs(flat, "sepia")
    assert not (tmp_path / "set").exists()
