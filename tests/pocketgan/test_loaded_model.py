"""The Python API: one way to edit by a run, an adapter and an exported file."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import network_of
from PIL import ExifTags, Image
from tiny import fit_base, real_photos

import pocketgan
from pocketgan.cli import main
from pocketgan.editor import Editor
from pocketgan.exporters import EXPORTERS
from pocketgan.images import to_image
from pocketgan.loaded_model import LoadedModel
from pocketgan.networks import E2GANGenerator, GroupNorm


@pytest.fixture(scope="module")
def photo():
    return to_image(real_photos(1, 64)[0])


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    main(["export", str(trained["adapter"]), f"--out={out}"])
    return {"run": trained["adapter"], "adapter": trained["adapter"] / "adapter", "file": out / "sepia.onnx"}


@pytest.fixture(scope="module")
def pack(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "pack"
    main(["export", str(trained["base"]), f"--adapters={trained['adapter']}", f"--out={out}"])
    return out


def values(picture):
    return np.asarray(picture).astype(int)


def test_a_run_its_adapter_and_its_file_edit_alike(models, photo):
    edits = {name: pocketgan.load(path).edit(photo) for name, path in models.items()}
    assert edits["run"].size == photo.size
    assert edits["run"].tobytes() == edits["adapter"].tobytes()
    assert np.abs(values(edits["run"]) - values(edits["file"])).max() <= 1
    assert edits["run"].tobytes() != photo.tobytes()


def test_strength_goes_from_the_photo_to_the_edit(models, photo):
    model = pocketgan.load(str(models["file"]))
    none, half, whole = (model.edit(photo, "sepia", strength) for strength in (0, 0.5, 1))
    assert none.tobytes() == photo.tobytes()
    assert whole.tobytes() == model.edit(photo).tobytes()
    assert np.abs(2 * values(half) - values(photo) - values(whole)).max() <= 2


def test_pictures_of_other_kinds(models, photo):
    model = pocketgan.load(models["file"])
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    assert model.edit(clear).getchannel("A").tobytes() == clear.getchannel("A").tobytes()
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    deep.info["transparency"] = 0
    assert model.edit(deep).mode == "RGB"
    turned = photo.crop((0, 0, 64, 40))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert model.edit(turned).size == (40, 64)
    assert model.edit(photo.convert("L")).mode == "RGB"
    with pytest.raises(TypeError, match="found a ndarray; give a picture of Pillow's"):
        model.edit(values(photo))


def test_a_base_knows_several_concepts(trained, photo):
    model = pocketgan.load(trained["base"])
    assert model.concepts == ["inverted"]
    assert model.editor("inverted") is model.editor()
    with pytest.raises(ValueError, match="does not know the concept sepia; choose one with --concept: inverted"):
        model.edit(photo, "sepia")


def test_an_adapter_alone_needs_its_base(trained, models, photo, tmp_path, monkeypatch):
    alone = tmp_path / "somewhere"
    shutil.copytree(models["adapter"], alone)
    expected = pocketgan.load(models["run"]).edit(photo).tobytes()
    model = pocketgan.load(alone, base=trained["base"])
    assert model.concepts == ["sepia"]
    assert model.edit(photo).tobytes() == expected
    assert pocketgan.load(models["run"], base=trained["base"]).edit(photo).tobytes() == expected
    with pytest.raises(
        ValueError,
        match=r"somewhere is an adapter of sepia without its base, whose weights' sha256 is [0-9a-f]{12}… "
        r"\(text encoder: ConceptTokens of 16 features\); give that base's run folder as base \(--base RUN\)",
    ):
        pocketgan.load(alone)
    # another run's folder is not its run
    copied = tmp_path / "other"
    shutil.copytree(trained["base"], copied)
    shutil.copytree(alone, copied / "sepia")
    with pytest.raises(ValueError, match="is an adapter of sepia without its base"):
        pocketgan.load(copied / "sepia")
    photo.save(tmp_path / "a.png")
    main(["edit", "a.png", f"--model={alone}", f"--base={trained['base']}", "--out=edited"])
    with Image.open(tmp_path / "edited" / "a.png") as edit:
        assert edit.tobytes() == expected


def test_an_adapter_on_another_base_is_refused(trained, models, tmp_path):
    alone = tmp_path / "somewhere"
    shutil.copytree(models["adapter"], alone)
    other = fit_base(trained["pairs"], tmp_path / "other", "--data.concepts=[inverted]", "--seed_everything=7")
    with pytest.raises(ValueError, match=r"somewhere was trained on another base \(weights [0-9a-f]{12}…, here "):
        pocketgan.load(alone, base=other)
    with pytest.raises(ValueError, match="holds an adapter; give its base instead"):
        pocketgan.load(alone, base=trained["adapter"])
    with pytest.raises(FileNotFoundError, match="none is not a run folder"):
        pocketgan.load(alone, base=tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no adapter, which is what base \(--base\) is for; leave it out"):
        pocketgan.load(models["file"], base=other)
    (alone / "prompt_tokens.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is a PEFT adapter, but its prompt_tokens\.safetensors cannot be read"):
        pocketgan.load(alone)


def test_a_file_of_a_pack_is_the_pack_at_its_concept(pack, photo):
    whole = pocketgan.load(pack)
    assert whole.concepts == ["inverted", "sepia"]
    for concept in whole.concepts:
        model = pocketgan.load(pack / f"{concept}.safetensors")
        assert model.concepts == [concept]
        assert model.edit(photo).tobytes() == whole.edit(photo, concept).tobytes()
    assert whole.edit(photo, "inverted").tobytes() != whole.edit(photo, "sepia").tobytes()
    for name in ("base.onnx", "base.weights"):
        with pytest.raises(
            ValueError,
            match=rf"{name} is a part of a pack; give the folder .*, and choose .*--concept: inverted, sepia",
        ):
            pocketgan.load(pack / name)
    with pytest.raises(ValueError, match=r"model_card\.md is no exported model"):
        pocketgan.load(pack / "model_card.md")


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": "pocketgan-pa',
        b"\xff\xfe",
        b"[]",
        b'{"concepts": 1}',
        b'{"format": "pocketgan-pack", "version": 1}',
    ],
)
def test_a_broken_pack_is_named(pack, tmp_path, content):
    broken = tmp_path / "broken"
    shutil.copytree(pack, broken)
    (broken / "pack.json").write_bytes(content)
    for path in (broken, broken / "sepia.safetensors"):
        with pytest.raises(ValueError, match=r"broken/pack\.json (is damaged.*; copy the whole|says .*; export it)"):
            pocketgan.load(path)


def test_few_editors_are_kept(photo):
    opened = []
    model = LoadedModel(Path("pack"), list("abcdef"), lambda concept: opened.append(concept) or Editor(lambda x: x, 8))
    for concept in "abcdeefba":
        model.edit(photo, concept)
    assert "".join(opened) == "abcdefba"


@pytest.mark.parametrize("of", ["run", "alone"])
def test_threads_are_the_models_own(trained, models, photo, tmp_path, monkeypatch, of):
    path, base = models["run"], None
    if of == "alone":
        path, base = tmp_path / "alone", trained["base"]
        shutil.copytree(models["adapter"], path)
    seen = []
    forward = E2GANGenerator.forward
    monkeypatch.setattr(
        E2GANGenerator, "forward", lambda *given: seen.append(torch.get_num_threads()) or forward(*given)
    )
    before = torch.get_num_threads()
    model = pocketgan.load(path, threads=before + 2, base=base)
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(4) as pool:
        edits = list(pool.map(model.edit, [photo] * 8))
        after = set(pool.map(lambda _: torch.get_num_threads(), range(8)))
    assert set(seen) == {before + 2}
    assert {torch.get_num_threads(), *after} == {before}
    assert len({edit.tobytes() for edit in edits}) == 1
    with pytest.raises(ValueError, match="0 threads compute nothing; give 1 or more"):
        pocketgan.load(path, threads=0, base=base)


@pytest.mark.extended
@pytest.mark.parametrize(("target", "jobs"), [("executorch", 2), ("litert", 1)])
def test_models_of_one_size_edit_pictures_of_any(tmp_path, target, jobs):
    network, exporter = network_of(GroupNorm), EXPORTERS[target]()
    file = tmp_path / f"sepia{exporter.suffix}"
    # 40 is a multiple of 8, and not of 32
    exporter.export(network, file, {"concept": "sepia"}, size=40, size_divisor=8)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, (photo, box) in enumerate(zip(real_photos(6, 96), [(40, 33), (40, 40), (96, 70)] * 2, strict=True)):
        to_image(photo).crop((0, 0, *box)).save(photos / f"{index}.png")
    main(["edit", str(photos), f"--model={file}", f"--jobs={jobs}", "--out=edited"])
    model, reference = pocketgan.load(file), Editor(network, size_divisor=8, fixed_size=40)
    assert model.concepts == ["sepia"]
    for path in sorted(photos.iterdir()):
        with Image.open(path) as photo, Image.open(tmp_path / "edited" / path.name) as edit:
            assert edit.size == photo.size
            assert edit.tobytes() == model.edit(photo).tobytes()
            assert np.abs(values(edit) - values(reference.edit(photo))).max() <= 1


def test_what_is_refused(models, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a run folder or an exported file"):
        pocketgan.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        pocketgan.load(tmp_path)
    with pytest.raises(
        ValueError, match="is exported, and exported models run on the CPU; load its run for device cuda"
    ):
        pocketgan.load(models["file"], device="cuda")
    with pytest.raises(ValueError, match=r"strength is 1.5; give a share from 0, the photo, to 1"):
        pocketgan.load(models["file"]).edit(photo, strength=1.5)
    with pytest.raises(ValueError, match="both must be at least 32"):
        pocketgan.load(models["file"]).edit(photo.resize((10, 10)))
