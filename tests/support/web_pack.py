"""Packs for the web page, and what Python makes of them."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save_file

WEIGHTS = "base.weights"


def write_pack(folder, model, adapters, changing=(), prompts=None, size=64, dynamic_size=True, title="Tiny styles"):
    """Write a pack of an ONNX model from uint8 to uint8.

    Args:
        folder: Is made.
        model: An ``onnx.ModelProto``.
        adapters: A concept's name to its safetensors' arrays, or to None for the base as it is.
        changing: Names of initializers that adapters change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    places, weights = {}, b""
    for initializer in graph.graph.initializer:
        if initializer.name in changing:
            data = numpy_helper.to_array(initializer).astype("<f4").tobytes()
            place = {"offset": len(weights), "length": len(data)}
            places[initializer.name] = {"shape": list(initializer.dims), **place}
            weights += data
            initializer.ClearField("raw_data")
            initializer.data_location = TensorProto.EXTERNAL
            for key, value in {"location": WEIGHTS, **place}.items():
                initializer.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    if changing:
        (folder / WEIGHTS).write_bytes(weights)
    concepts = []
    for name, arrays in adapters.items():
        file = None if arrays is None else f"{name}.safetensors"
        if arrays is not None:
            save_file(arrays, folder / file)
        stored = 0 if file is None else (folder / file).stat().st_size
        concepts.append({"name": name, "prompt": (prompts or {}).get(name, name), "file": file, "bytes": stored})
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "pack.json")
    pack = {
        "format": "pocketgan-pack",
        "version": 1,
        "base": "0123456789abcdef",
        "title": title,
        "size": size,
        "size_divisor": 8,
        "dynamic_size": dynamic_size,
        "precision": "fp32",
        "graph": "model.onnx",
        "weights": WEIGHTS if changing else None,
        "changing": places,
        "concepts": concepts,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / "pack.json").write_text(json.dumps(pack, indent=2))


def changeable(model, number=2):
    """Names of the largest convolutions' weights."""
    kernels = [each for each in model.graph.initializer if len(each.dims) == 4]
    return [each.name for each in sorted(kernels, key=lambda each: -np.prod(each.dims))[:number]]


def weight_of(model, name):
    return numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name))


def edit_in_python(model, photo, replaced=None):
    """Edit a photo (H, W, 3) by ONNX Runtime, with some initializers replaced."""
    model_now = onnx.ModelProto()
    model_now.CopyFrom(model)
    for initializer in model_now.graph.initializer:
        if replaced and initializer.name in replaced:
            initializer.CopyFrom(numpy_helper.from_array(replaced[initializer.name], initializer.name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_now.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["edit"], {"photo": photo[None]})[0][0]
