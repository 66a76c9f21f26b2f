"""What holds for ONNX alone."""

import os
from collections import Counter

import onnx
import pytest
import torch
import torch.nn.functional as F
from exported import network_of, photos_of
from torch import nn

from pocketgan.exporters import ExportOptions, OnnxExporter, compare, measure_latency
from pocketgan.files import TEMPORARY_SUFFIX
from pocketgan.networks import BatchNorm, E2GANGenerator, GroupNorm


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """The file of each norm."""
    files = {}
    for norm in (BatchNorm, GroupNorm):
        files[norm] = tmp_path_factory.mktemp("onnx") / "model.onnx"
        OnnxExporter().export(network_of(norm), files[norm], {"concept": "one"}, size=32, size_divisor=8)
    return files


@pytest.fixture
def onnx_file(onnx_files):
    return onnx_files[GroupNorm]


def test_an_onnx_model_of_another_program_is_refused(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"of another program \(takes photo \['batch', 3"):
        OnnxExporter().load(tmp_path / "foreign.onnx")


def test_the_onnx_graph_is_what_onnx_runtime_is_fast_at(onnx_file):
    model = onnx.load(onnx_file)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["InstanceNormalization"] == 13
    assert operators["Attention"] == 1
    assert not operators["GroupNormalization"]
    assert not operators["ReduceMean"]
    assert model.opset_import[0].version == 23


def test_the_onnx_file_names_no_path_of_this_machine(onnx_file):
    content = onnx_file.read_bytes()
    assert b".py" not in content


def test_batch_norms_are_folded_into_convolutions(onnx_files):
    operators = Counter(node.op_type for node in onnx.load(onnx_files[BatchNorm]).graph.node)
    assert not operators["BatchNormalization"]


def test_layers_are_named_after_their_modules(onnx_files):
    names = [node.name for node in onnx.load(onnx_files[BatchNorm]).graph.node if node.op_type == "Conv"]
    assert names[0] == "generator.stem.0/use_0"
    assert names[-1] == "generator.head.0/use_0"


@pytest.mark.parametrize("size_divisor", [1, 4])
def test_networks_of_other_divisors_and_the_earlier_opset(tmp_path, size_divisor):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8, affine=False), nn.Conv2d(8, 3, 1))
    exporter = OnnxExporter(opset=20)
    exporter.export(network, tmp_path / "model.onnx", {}, size=size_divisor, size_divisor=size_divisor)
    photos = photos_of((1, 3, 36, 44))
    assert compare(network, exporter.load(tmp_path / "model.onnx"), photos).max_difference < 1e-5


@pytest.mark.parametrize(("outputs", "bias"), [(1, True), (3, False), (4, True)])
def test_few_outputs_are_computed_four_pixels_at_a_time(tmp_path, outputs, bias):
    torch.manual_seed(0)
    head = nn.Conv2d(8, outputs, 7, padding=3, bias=bias)
    halved = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Upsample(scale_factor=2), head)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), head)  # whose photos may be of an odd size
    for network, size_divisor, shuffles in ((halved, 4, 1), (whole, 1, 0)):
        OnnxExporter().export(network, tmp_path / "model.onnx", {}, 16, size_divisor)
        graph = onnx.load(tmp_path / "model.onnx").graph
        assert sum(node.op_type == "DepthToSpace" for node in graph.node) == shuffles
        model = OnnxExporter().load(tmp_path / "model.onnx")
        assert compare(network, model, photos_of((2, 3, 24, 24), (1, 3, 40, 24))).max_difference < 1e-5
    assert compare(whole, model, photos_of((1, 3, 23, 17))).max_difference < 1e-5


@pytest.mark.parametrize("opset", [11, 17, 26])
def test_an_opset_that_pytorch_does_not_export_is_refused(opset):
    with pytest.raises(ValueError, match=f"opset is {opset}, but PyTorch exports 18 to 25"):
        OnnxExporter(opset=opset)


@pytest.mark.parametrize("opset", [18, 25])
def test_the_ends_of_what_is_exported(tmp_path, opset):
    network = network_of(BatchNorm)
    OnnxExporter(opset).export(network, tmp_path / "model.onnx", {}, size=32, size_divisor=8)
    photos = photos_of((2, 3, 40, 64))
    assert compare(network, OnnxExporter().load(tmp_path / "model.onnx"), photos).max_difference < 1e-5


def test_a_broken_package_is_not_taken_for_a_broken_network(tmp_path, monkeypatch):
    def fail(*_, **__):
        try:
            raise AttributeError("module 'z3' has no attribute 'Int'")
        except AttributeError as error:
            raise torch.onnx.errors.OnnxExporterError("export failed") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="export failed"):
        OnnxExporter().export(nn.Conv2d(3, 3, 1), tmp_path / "model.onnx", {}, size=32, size_divisor=1)


def test_a_difference_by_hand():
    half_off = compare(nn.Identity(), lambda photos: photos + 0.5, [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)])
    assert half_off.max_difference == 0.5
    assert half_off.psnr_db == pytest.approx(12.041, abs=1e-3)  # 10 log10(4 / 0.25)
    assert compare(nn.Identity(), lambda photos: photos, [torch.zeros(1, 3, 4, 4)]).psnr_db == float("inf")
    with pytest.raises(ValueError, match="no photos"):
        compare(nn.Identity(), lambda photos: photos, [])


def test_latency_is_measured_on_the_threads_asked_for(onnx_file):
    latency = measure_latency(OnnxExporter().load(onnx_file, threads=1), size=32, threads=1, runs=3, warmup=1)
    assert 0 < latency.median_ms <= latency.p95_ms
    assert (latency.threads, latency.size) == (1, 32)
    with pytest.raises(ValueError, match="loaded for 1 threads; load it with threads=2"):
        measure_latency(OnnxExporter().load(onnx_file, threads=1), size=32, threads=2)

    with pytest.raises(ValueError, match="threads is 0; give 1 or more"):
        OnnxExporter().load(onnx_file, threads=0)

    threads_before, seen = torch.get_num_threads(), []
    measure_latency(lambda _: seen.append(torch.get_num_threads()), size=32, threads=1, runs=2, warmup=1)
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == threads_before


def test_partial_files_have_the_suffix_that_is_cleared_away(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(path.name for path in tmp_path.iterdir()))
    OnnxExporter().export(nn.Conv2d(3, 3, 1), tmp_path / "model.onnx", {}, size=32, size_divisor=1)
    assert [name.endswith(TEMPORARY_SUFFIX) for name in names] == [True]


class AttentionOverManyPlaces(nn.Module):
    """Of whose weights each is far below a 256th."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.exit = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, photo):
        query, key, value = self.entry(photo).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(3 * query, 3 * key, value)
        return self.exit(mixed[:, 0].transpose(1, 2).unflatten(2, photo.shape[2:]))


@pytest.mark.parametrize("opset", [20, 23])  # without and with an operator for attention
def test_attention_over_many_places_survives_int8(tmp_path, opset):
    network, file = AttentionOverManyPlaces().eval(), tmp_path / "model.onnx"
    photos = [F.interpolate(photo, 32, mode="bilinear") for photo in photos_of(*[(1, 3, 4, 4)] * 4)]
    options = ExportOptions("int8", dynamic_size=False, calibration=tuple(photos))
    OnnxExporter(opset).export(network, file, {}, 32, 8, options)
    assert compare(network, OnnxExporter().load(file), photos).psnr_db > 40
    weights = {name for node in onnx.load(file).graph.node for name in node.input}
    assert weights >= {tensor.name for tensor in onnx.load(file).graph.initializer}


@pytest.mark.extended
def test_int8_of_norms_that_share_their_constants(tmp_path):
    """The quantiser's copy of what norms share would take the name of a sum's output, at the quickstart's width."""
    torch.manual_seed(0)
    generator = E2GANGenerator(width=16, token_size=64, norm=GroupNorm(), transformer_skip=True).eval()
    network, photos = generator.fold_prompt(torch.randn(1, 4, 64)), tuple(photos_of(*[(1, 3, 32, 32)] * 4))
    options = ExportOptions("int8", calibration=photos)
    OnnxExporter().export(network, tmp_path / "model.onnx", {}, 32, 8, options)
    assert compare(network, OnnxExporter().load(tmp_path / "model.onnx"), photos).psnr_db > 30
