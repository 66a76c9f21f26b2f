import errno
import functools
import os
import sys
from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from pocketgan.exporters import Exporter, OnnxExporter, compare, measure_latency
from pocketgan.files import TEMPORARY_SUFFIX
from pocketgan.networks import BatchNorm, E2GANGenerator, GroupNorm, InstanceNorm

EXPORTERS = Exporter.__subclasses__()
NORMS = [BatchNorm, GroupNorm, InstanceNorm]


def network_of(norm):
    """A folded generator whose norms do something."""
    torch.manual_seed(0)
    generator = E2GANGenerator(width=8, token_size=16, norm=norm()).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return generator.fold_prompt(torch.randn(1, 3, 16))


@pytest.fixture(scope="module")
def export_once(tmp_path_factory):
    """A function of exporter and norm class that gives the network and its file; an export takes seconds."""

    @functools.cache
    def export(exporter_class, norm):
        network, exporter = network_of(norm), exporter_class()
        path = tmp_path_factory.mktemp("models") / "folder" / f"model{exporter.suffix}"
        exporter.export(network, path, {"concept": "café – 水彩", "base": "abc"}, size=32, size_divisor=8)
        return network, path

    return export


@pytest.fixture(params=EXPORTERS, ids=lambda exporter: exporter.__name__)
def exporter(request):
    return request.param()


@pytest.fixture(params=NORMS, ids=lambda norm: norm.__name__)
def exported(request, exporter, export_once):
    return export_once(type(exporter), request.param)


@pytest.fixture
def onnx_file(export_once):
    return export_once(OnnxExporter, GroupNorm)[1]


def photos_of(*sizes):
    torch.manual_seed(1)
    return [torch.rand(size) * 2 - 1 for size in sizes]


def test_the_export_equals_the_network_at_other_sizes_and_batches(exporter, exported):
    network, path = exported
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = exporter.load(path)
    photos = photos_of((1, 3, 64, 64), (2, 3, 96, 160))
    assert model(photos[1]).shape == photos[1].shape
    difference = compare(network, model, photos)
    assert difference.max_difference < 1e-4
    assert difference.psnr_db > 80
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_file_says_what_it_is(exporter, exported):
    _, path = exported
    model = exporter.load(path, threads=1)
    assert model.metadata["concept"] == "café – 水彩"
    assert model.metadata["base"] == "abc"
    assert model.metadata["size"] == "32"
    assert model.metadata["pocketgan_version"]
    assert (model.size_divisor, model.threads) == (8, 1)
    assert list(path.parent.iterdir()) == [path], "one file holds everything"


def test_a_size_between_two_multiples_is_refused(exporter, exported):
    _, path = exported
    with pytest.raises(ValueError, match="100×64 pixels, but both must be multiples of 8"):
        exporter.load(path)(torch.zeros(1, 3, 64, 100))


def test_a_file_of_another_format_is_refused(exporter, tmp_path):
    path = tmp_path / f"model{exporter.suffix}"
    path.write_bytes(b"this is a text")
    with pytest.raises(ValueError, match=r"14 bytes.*accepted is"):
        exporter.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        exporter.load(tmp_path / "absent")


def test_a_full_disk_leaves_nothing(exporter, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="free some space"):
        exporter.export(nn.Conv2d(3, 3, 3, padding=1), tmp_path / "model", {}, size=32, size_divisor=1)
    assert not list(tmp_path.iterdir())


def test_a_training_size_that_the_network_refuses_is_refused(exporter, tmp_path):
    with pytest.raises(ValueError, match="size 100 is not a multiple of size_divisor 8"):
        exporter.export(nn.Identity(), tmp_path / "model", {}, size=100, size_divisor=8)


def test_an_onnx_model_of_another_program_is_refused(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"of another program \(takes photo \['batch', 3"):
        OnnxExporter().load(tmp_path / "foreign.onnx")


def test_a_truncated_onnx_model_is_refused(onnx_file, tmp_path):
    path = tmp_path / "truncated.onnx"
    path.write_bytes(onnx_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="accepted is"):
        OnnxExporter().load(path)


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


def test_batch_norms_are_folded_into_convolutions(export_once):
    _, path = export_once(OnnxExporter, BatchNorm)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    # the convolution before the transformer also gives the shape that its tokens return to: one stays
    assert operators["BatchNormalization"] <= 1


@pytest.mark.parametrize("size_divisor", [1, 4])
def test_networks_of_other_divisors_and_the_earlier_opset(tmp_path, size_divisor):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8, affine=False), nn.Conv2d(8, 3, 1))
    exporter = OnnxExporter(opset=20)
    exporter.export(network, tmp_path / "model.onnx", {}, size=size_divisor, size_divisor=size_divisor)
    photos = photos_of((1, 3, 36, 44))
    assert compare(network, exporter.load(tmp_path / "model.onnx"), photos).max_difference < 1e-5


def test_a_missing_package_is_named_with_its_remedy(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'pocketgan\[onnx\]'"):
        OnnxExporter().load(onnx_file)


def test_an_opset_that_pytorch_does_not_export_is_refused():
    with pytest.raises(ValueError, match="opset is 11"):
        OnnxExporter(opset=11)


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

    threads_before, seen = torch.get_num_threads(), []
    measure_latency(lambda _: seen.append(torch.get_num_threads()), size=32, threads=1, runs=2, warmup=1)
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == threads_before


def test_partial_files_have_the_suffix_that_is_cleared_away(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(path.name for path in tmp_path.iterdir()))
    OnnxExporter().export(nn.Conv2d(3, 3, 1), tmp_path / "model.onnx", {}, size=32, size_divisor=1)
    assert [name.endswith(TEMPORARY_SUFFIX) for name in names] == [True]
