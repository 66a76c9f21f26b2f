"""What holds for every exporter: its files are the network, say what they are, and are refused where they are none."""

import errno
import functools
import gc
import json
import os
import sys
import threading
import warnings

import pytest
import torch
from exported import network_of, photos_of, small_network
from torch import nn

from pocketgan.exporters import EXPORTERS, ExportOptions, compare, measure_latency, measure_peak_memory
from pocketgan.networks import BatchNorm, GroupNorm, InstanceNorm

NORMS = [BatchNorm, GroupNorm, InstanceNorm]
LEVEL = 1 / 127.5
METADATA = {"concept": "café – 水彩", "base": "abc"}


def runs_here(target):
    return EXPORTERS[target]().runs_here()


def slow_ones_marked(targets):
    """ExecuTorch's passes over a graph take half a minute."""
    return [
        pytest.param(target, marks=pytest.mark.extended) if target == "executorch" else target for target in targets
    ]


HERE = [target for target in EXPORTERS if runs_here(target)]
# a page's pictures are of 256 levels, which hide smaller differences
FLOAT_HERE = [target for target in HERE if EXPORTERS[target].own_pixels == "float32"]
RUNNING, FLOAT = slow_ones_marked(HERE), slow_ones_marked(FLOAT_HERE)


@pytest.fixture(scope="module")
def export_once(tmp_path_factory):
    """A function of target, norm class and options that gives network, file and findings; an export takes seconds.

    Without a norm it is of a small network.
    """

    @functools.cache
    def export(target, norm=None, precision="fp32", pixels=None, excluded=()):
        network, exporter = small_network() if norm is None else network_of(norm), EXPORTERS[target]()
        pixels = pixels or exporter.own_pixels
        path = tmp_path_factory.mktemp("models") / "folder" / f"model{exporter.suffix}"
        calibration = tuple(photos_of(*[(1, 3, 32, 32)] * 4)) if precision == "int8" else ()
        options = ExportOptions(precision, pixels, calibration=calibration, excluded=excluded)
        findings = exporter.export(network, path, METADATA, size=32, size_divisor=8, options=options)
        return network, path, findings

    return export


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("target", FLOAT)
def test_the_export_equals_the_network(export_once, target, norm):
    network, path, _ = export_once(target, norm)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = EXPORTERS[target]().load(path)
    photos = photos_of((1, 3, 32, 32), (2, 3, 32, 32))
    if model.fixed_size is None:
        photos += photos_of((1, 3, 64, 64), (2, 3, 96, 160))
    assert model(photos[-1]).shape == photos[-1].shape
    difference = compare(network, model, photos)
    assert difference.max_difference < 1e-4
    assert difference.psnr_db > 80
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("target", FLOAT)
def test_smaller_precisions_are_near_and_smaller_but_for_executorch_s_fp16(export_once, target):
    whole = export_once(target)[1].stat().st_size
    # XNNPACK keeps weights in float32 and adds casts
    half = 1.01 if target == "executorch" else 0.75
    for precision, smallest_psnr, share in (("fp16", 50, half), ("int8", 30, 0.75)):
        network, path, _ = export_once(target, None, precision)
        model = EXPORTERS[target]().load(path, threads=1)
        difference = compare(network, model, photos_of((2, 3, 32, 32)))
        assert model.metadata["precision"] == precision
        assert difference.psnr_db > smallest_psnr
        assert difference.max_difference > 1e-6, "float32 was written"
        assert path.stat().st_size < share * whole


@pytest.mark.parametrize("target", FLOAT)
def test_excluded_layers_stay_in_float32(export_once, target):
    network, path, _ = export_once(target, None, "int8", excluded=("generator.head.0",))
    fewer = compare(network, EXPORTERS[target]().load(path), photos_of((2, 3, 32, 32)))
    _, path, _ = export_once(target, None, "int8")
    more = compare(network, EXPORTERS[target]().load(path), photos_of((2, 3, 32, 32)))
    assert fewer.psnr_db > more.psnr_db + 1


@pytest.mark.parametrize("target", RUNNING)
def test_8_bit_pictures_in_and_out(export_once, target):
    network, path, _ = export_once(target, pixels="uint8")
    model = EXPORTERS[target]().load(path)
    photos = [((photo + 1) * 127.5).round() / 127.5 - 1 for photo in photos_of((2, 3, 32, 32))]
    assert model.metadata["pixels"] == "uint8"
    assert compare(network, model, photos).max_difference <= 0.5 * LEVEL + 1e-4
    levels = (model(photos[0]) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", RUNNING)
def test_the_file_says_what_it_is(export_once, target):
    _, path, _ = export_once(target)
    model = EXPORTERS[target]().load(path, threads=1)
    assert model.metadata["concept"] == "café – 水彩"
    assert model.metadata["base"] == "abc"
    assert model.metadata["size"] == "32"
    assert model.metadata["pocketgan_version"]
    assert (model.size_divisor, model.threads) == (8, 1)
    assert model.fixed_size == (None if target in {"onnx", "web"} else 32)
    assert list(path.parent.iterdir()) == [path], "one file holds everything"


@pytest.mark.parametrize("target", RUNNING)
def test_models_of_other_numbers_of_threads_run_by_turns(export_once, target):
    _, path, _ = export_once(target)
    (photo,) = photos_of((2, 3, 32, 32))
    models = [EXPORTERS[target]().load(path, threads) for threads in (1, 2, 3, 1)]
    edits = [model(photo) for _ in range(5) for model in models]
    assert [model.threads for model in models] == [1, 2, 3, 1]
    for edit in edits[1:]:
        torch.testing.assert_close(edit, edits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", FLOAT)
def test_one_model_serves_several_threads(export_once, target):
    _, path, _ = export_once(target)
    model, photos = EXPORTERS[target]().load(path, threads=1), photos_of(*[(1, 3, 32, 32)] * 8)
    wanted, edits = [model(photo) for photo in photos], {}

    def edit(worker):
        edits[worker] = [model(photo) for photo in photos]

    workers = [threading.Thread(target=edit, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(edits) == 4, "none failed"
    for found in edits.values():
        for edited, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(edited, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", RUNNING)
def test_latency_is_that_of_the_model_on_its_own_pictures(export_once, target, monkeypatch):
    _, path, _ = export_once(target, pixels="uint8")
    model, seen = EXPORTERS[target]().load(path, threads=1), []
    run = model.run
    monkeypatch.setattr(
        model, "run", lambda pictures: seen.append((pictures.dtype, torch.get_num_threads())) or run(pictures)
    )
    measure_latency(model, size=32, threads=1, runs=2, warmup=1)
    assert seen == [(torch.uint8, 1)] * 3


@pytest.mark.parametrize("target", RUNNING)
def test_memory_is_the_models_not_its_packages(export_once, target):
    _, path, _ = export_once(target)
    assert 0 < measure_peak_memory(target, path, 32, 1) < 100


@pytest.mark.parametrize("target", RUNNING)
def test_a_size_that_the_model_does_not_take_is_refused(export_once, target):
    _, path, _ = export_once(target)
    with pytest.raises(
        ValueError, match=r"100×64 pixels, but (both must be multiples of 8|the model takes 32×32 alone)"
    ):
        EXPORTERS[target]().load(path)(torch.zeros(1, 3, 64, 100))


@pytest.mark.parametrize("target", EXPORTERS)
def test_a_file_of_another_format_is_refused(target, tmp_path):
    exporter = EXPORTERS[target]()
    path = tmp_path / f"model{exporter.suffix}"
    path.write_bytes(b"this is a text")
    with pytest.raises(ValueError, match=r"14 bytes.*accepted is"):
        exporter.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        exporter.load(tmp_path / "absent")


@pytest.mark.parametrize("target", RUNNING)
def test_a_truncated_file_is_refused(export_once, target, tmp_path):
    _, path, _ = export_once(target)
    cut = tmp_path / path.name
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="accepted is"):
        EXPORTERS[target]().load(cut)


@pytest.mark.parametrize("target", EXPORTERS)
def test_a_full_disk_leaves_nothing(target, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    exporter = EXPORTERS[target]()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="free some space"):
        exporter.export(nn.Conv2d(3, 3, 3, padding=1), tmp_path / f"m{exporter.suffix}", {}, size=32, size_divisor=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", EXPORTERS)
def test_a_training_size_that_the_network_refuses_is_refused(target, tmp_path):
    with pytest.raises(ValueError, match="size 100 is not a multiple of size_divisor 8"):
        EXPORTERS[target]().export(nn.Identity(), tmp_path / "model", {}, size=100, size_divisor=8)


class Inverse(nn.Module):
    """What no device has."""

    def forward(self, photo):
        return torch.linalg.inv(photo)


@pytest.mark.parametrize("target", EXPORTERS)
def test_an_operation_that_the_target_lacks_is_named(target, tmp_path):
    exporter = EXPORTERS[target]()
    with warnings.catch_warnings():
        # coremltools leaves its folder to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(ValueError, match=r"(?s)(ONNX opset 2\d cannot hold|lacks an operation).*inv.*replace"):
            exporter.export(Inverse(), tmp_path / f"m{exporter.suffix}", {}, size=32, size_divisor=8)
        gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("onnx", {"Pad (reflect)", "InstanceNormalization", "ConvTranspose"}),
        ("web", {"Pad (reflect)"}),  # WebGPU has the others
        ("executorch", {"reflection_pad2d", "instance_norm"}),
        ("litert", {"MIRROR_PAD"}),
        ("coreml", {"pad (reflect)", "instance_norm", "conv_transpose"}),
    ],
)
def test_pix2pix_layers_are_found(target, named, tmp_path):
    exporter = EXPORTERS[target]()
    network = nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.InstanceNorm2d(8),
        nn.ConvTranspose2d(8, 3, 2, stride=2),
    ).eval()
    findings = exporter.export(network, tmp_path / f"m{exporter.suffix}", {}, size=32, size_divisor=8)
    assert named <= {finding.operation for finding in findings}
    assert all(finding.number >= 1 and finding.why and finding.remedy for finding in findings)
    if target in FLOAT_HERE:
        model = exporter.load(tmp_path / f"m{exporter.suffix}")
        assert compare(network, model, photos_of((1, 3, 32, 32))).max_difference < 1e-4


@pytest.mark.parametrize(
    ("target", "package"),
    [("onnx", "onnxruntime"), ("executorch", "executorch.runtime"), ("litert", "ai_edge_litert.interpreter"),
     ("coreml", "coremltools")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_remedy(target, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package.split('.')[0]}.*pip install 'pocketgan\[{target}\]'"):
        EXPORTERS[target]().load(tmp_path / "model")


@pytest.mark.skipif(sys.platform == "darwin", reason="runs there")
def test_core_ml_says_where_it_runs(export_once):
    _, path, _ = export_once("coreml")
    assert not runs_here("coreml")
    with pytest.raises(RuntimeError, match=r"runs on Apple's systems alone, and this is linux; open it on a Mac"):
        EXPORTERS["coreml"]().load(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_core_ml_package_holds_the_networks_weights(export_once, precision):
    import coremltools

    network, path, _ = export_once("coreml", InstanceNorm, precision)
    spec = coremltools.utils.load_spec(str(path))
    assert [(value.name, list(value.type.multiArrayType.shape)) for value in spec.description.input] == [
        ("photo", [1, 3, 32, 32])
    ]
    assert [value.name for value in spec.description.output] == ["edit"]
    assert json.loads(spec.description.metadata.userDefined["pocketgan"])["concept"] == "café – 水彩"
    operations = [
        operation.type
        for operation in next(iter(spec.mlProgram.functions["main"].block_specializations.values())).operations
    ]
    assert operations.count("conv") == sum(isinstance(module, nn.Conv2d) for module in network.modules())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    weights = sum(parameter.numel() for parameter in network.parameters())
    bytes_each = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    assert bytes_each * weights * 0.8 < size < bytes_each * weights * 1.2 + 60_000


@pytest.mark.parametrize("pixels", ["float32", "uint8"])
def test_a_core_ml_package_leaves_out_what_is_excluded(export_once, tmp_path, pixels):
    import coremltools

    _, path, _ = export_once("coreml", None, "int8", pixels, ("generator.head.0",))
    spec = coremltools.utils.load_spec(str(path))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    rounded = [
        operation.outputs[0].name
        for operation in block.operations
        if operation.type == "constexpr_blockwise_shift_scale" or "dequantize" in operation.type
    ]
    assert any("stem_0_weight" in name for name in rounded)
    assert not any("head_0_weight" in name for name in rounded)
    options = ExportOptions("int8", excluded=("absent",))
    with pytest.raises(ValueError, match="cannot exclude absent: the Core ML model has no weight of that name"):
        EXPORTERS["coreml"]().export(nn.Conv2d(3, 3, 3, padding=1), tmp_path / "m.mlpackage", {}, 8, 1, options)


def test_core_ml_takes_and_gives_images(export_once):
    import coremltools

    _, path, _ = export_once("coreml", None, "int8", "uint8", ("generator.head.0",))
    description = coremltools.utils.load_spec(str(path)).description
    for (value,) in (description.input, description.output):
        image = value.type.imageType
        assert (image.width, image.height) == (32, 32)
        assert image.colorSpace == image.ColorSpace.Value("RGB")
