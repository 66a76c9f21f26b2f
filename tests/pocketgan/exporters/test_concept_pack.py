"""One base in a file, concepts beside it."""

import json

import pytest
import torch
from tiny import real_photos

from lightning_modules import load_concepts
from pocketgan.exporters import WebExporter
from pocketgan.exporters.concept_pack import ConceptPack, PackedConcept, write_pack
from pocketgan.images import to_image, to_tensor

CONCEPTS = [PackedConcept("inverted", "make it inverted"), PackedConcept("sepia", "make it sepia")]
HALF_A_LEVEL = 0.5 / 127.5


@pytest.fixture(scope="module")
def model(trained):
    model = load_concepts(trained["base"], [trained["adapter"]])
    torch.manual_seed(0)
    for delta in model.changes("sepia").deltas.values():  # two steps of training leave B near 0
        delta.b.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    write_pack(model, CONCEPTS, folder, 32, 8)
    return folder


@pytest.fixture(scope="module")
def photo():
    return to_tensor(to_image(real_photos(1, 64)[0][:, :48]))[None]


def test_every_concept_edits_as_the_switched_base_does(model, folder, photo):
    pack = ConceptPack(folder)
    assert pack.concepts == ["inverted", "sepia"]
    edits = {}
    for concept in pack.concepts:
        model.use(concept)
        with torch.no_grad():
            edits[concept] = model(photo)
        difference = (pack.open(concept, 1)(photo) - edits[concept]).abs()
        assert difference.max() <= HALF_A_LEVEL + 1e-4
    assert (edits["inverted"] - edits["sepia"]).abs().mean() > 0.05, "the concepts differ"


def test_the_scale_of_an_adapter(model, folder, photo):
    pack = ConceptPack(folder)
    edits = {scale: pack.open("sepia", 1, scale)(photo) for scale in (0.0, 0.5, 1.0)}
    assert not torch.equal(edits[0.0], edits[0.5])
    assert not torch.equal(edits[0.5], edits[1.0])
    model.use("sepia")
    for name, (a, b, scale) in model.changes("sepia").deltas.items():
        weight = model.generator.state_dict()[name]
        weight.sub_((0.5 * scale * b @ a).view_as(weight))
    with torch.no_grad():
        assert (edits[0.5] - model(photo)).abs().max() <= HALF_A_LEVEL + 1e-4
    model.use("inverted")
    model.use("sepia")
    assert torch.equal(pack.open("inverted", 1, 0.0)(photo), pack.open("inverted", 1, 1.0)(photo)), "it has no adapter"


def test_a_page_s_pack_stays_on_webgpu(model, tmp_path):
    found = write_pack(model, CONCEPTS, tmp_path, 32, 8, exporter=WebExporter())
    assert not [finding for finding in found if not finding.applied]


def test_a_concept_costs_its_adapters_bytes(trained, folder):
    listed = {entry["name"]: entry for entry in json.loads((folder / "pack.json").read_text())["concepts"]}
    adapter = sum(file.stat().st_size for file in (trained["adapter"] / "adapter").glob("*.safetensors"))
    assert listed["sepia"]["bytes"] == (folder / "sepia.safetensors").stat().st_size < adapter + 4096
    assert listed["inverted"]["bytes"] < 1024
    assert (folder / "base.onnx").stat().st_size + (folder / "base.weights").stat().st_size > 100 * 1024


def test_a_damaged_file_is_named_with_both_digests(model, tmp_path):
    write_pack(model, CONCEPTS, tmp_path, 32, 8)
    file = tmp_path / "base.weights"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"base\.weights is damaged: its sha256 is [0-9a-f]{64}, but [0-9a-f]{64} was"):
        ConceptPack(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.weights is missing"):
        ConceptPack(tmp_path)


def test_packs_that_make_no_sense_are_refused(model, folder, tmp_path):
    with pytest.raises(ValueError, match="whose names differ in letters, digits, dots or hyphens, not none"):
        write_pack(model, [], tmp_path, 32, 8)
    for names in (("sepia", "sepia"), ("se pia", "se_pia")):
        with pytest.raises(ValueError, match=f"not {', '.join(names)}"):
            write_pack(model, [PackedConcept(name, "") for name in names], tmp_path, 32, 8)
    with pytest.raises(ValueError, match="unknown concept mosaic"):
        write_pack(model, [PackedConcept("mosaic", "")], tmp_path, 32, 8)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="does not hold mosaic; it holds inverted, sepia"):
        ConceptPack(folder).open("mosaic")
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        ConceptPack(tmp_path)
    (tmp_path / "pack.json").write_text('{"format": "pocketgan-pack", "version": 2}')
    with pytest.raises(ValueError, match="export it with this version"):
        ConceptPack(tmp_path)
    for content in ('{"format": ', "[]"):
        (tmp_path / "pack.json").write_text(content)
        with pytest.raises(ValueError, match=r"pack\.json (is damaged|says \{\})"):
            ConceptPack(tmp_path)


def test_a_pack_of_a_batch_norm_base(trained, tmp_path, photo):
    from pocketgan.adapters import SwitchableGenerator
    from pocketgan.networks import BatchNorm, E2GANGenerator

    torch.manual_seed(0)
    generator = E2GANGenerator(8, 16, norm=BatchNorm())
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    model = SwitchableGenerator(generator, {"one": torch.randn(2, 16), "two": torch.randn(2, 16)})
    write_pack(model, [PackedConcept("one", ""), PackedConcept("two", "")], tmp_path, 32, 8)
    for concept in ("one", "two"):
        model.use(concept)
        with torch.no_grad():
            assert (ConceptPack(tmp_path).open(concept, 1)(photo) - model(photo)).abs().max() <= HALF_A_LEVEL + 1e-4
