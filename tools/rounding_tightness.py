"""How near kernels come to their rounding bounds, layer by layer, and how long the comparison takes, on a CIFAR-10 ResNet.

    python tools/rounding_tightness.py --data ../shared/data

FP32, FP16 and INT8 as the bake stage writes them, and INT8 in the layout of ONNX Runtime's own quantiser, whose convolutions
become integer operators there. The comparison is timed as a ratio to running the same images through the engine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from safetensors.torch import load_file

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.validation import LayerDeviation
from masksparse_deploy.core.config import CertifyOptions, EngineOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.kernels import layer_kernels
from masksparse_deploy.validate.layers import exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers

__all__ = ["main", "row"]

MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"
WEIGHTS = "cifar10_resnet20-12fca82f.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = EngineOptions(batch=16, threads=1)
PATTERN = NMPattern(n=2, m=4)

Array = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, compare, print a table."""
    parser = argparse.ArgumentParser(description="Tightness of rounding bounds on CIFAR-10.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--count", type=int, default=64, help="test images")
    given = parser.parse_args(arguments)
    train = _images(load_factory("read_cifar10:train_set", given.data)((1,))[0][:200])
    test = _images(load_factory("read_cifar10:test_set", given.data)()[0][: given.count])
    twins = _twins(given.data / "weights" / WEIGHTS)
    print("| file | kernels | layers within | largest rounding / bound | bound / deviation, median | seconds | x the run |")
    print("|---|---|---|---|---|---|---|")
    for name in ("FP32", "FP16", "INT8", "INT8, ONNX Runtime's layout"):
        with tempfile.TemporaryDirectory() as folder:
            for twin, model in zip(("dense", "sparse"), twins, strict=True):
                onnx.save(_converted(model, name, train, Path(folder)), Path(folder) / f"{twin}.onnx")
            print(row(name, Path(folder), test), flush=True)


def row(name: str, folder: Path, images: Array) -> str:
    """Compare the engine of sparse.onnx in `folder`; a row of the table."""
    samples = Samples(images, np.zeros(len(images), dtype=np.int64))
    certificate = certify(folder / "dense.onnx", folder / "sparse.onnx", samples, CertifyOptions(sample_count=2, grid=8))
    dense, sparse = (read_graph(folder / f"{twin}.onnx") for twin in ("dense", "sparse"))
    pairs = layer_pairs(dense, sparse, certificate)
    backend = OnnxRuntimeBackend()
    engine = backend.build(folder / "sparse.onnx", folder, OPTIONS, name="layers", expose=exposed_tensors(pairs, sparse))
    (input_name,) = sparse.inputs
    with backend.open(folder / "layers.engine.json", threads=1) as session:
        run_s = _seconds(lambda: session.run(images))
        layers: list[tuple[LayerDeviation, ...]] = []
        kernels = layer_kernels(pairs, engine)
        compare_s = _seconds(
            lambda: layers.append(compare_layers(session, pairs, images, input_name=input_name, kernels=kernels))
        )
    found = layers[0]
    kinds = [layer.arithmetic or "none" for layer in found]
    within = sum(layer.verdict == "pass" for layer in found)
    tightness = statistics.median(layer.tightness or 0.0 for layer in found)
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    largest = max(layer.rounding_ratio for layer in found)
    return (
        f"| {name} | {counts} | {within} of {len(found)} | {largest:.4f} | {tightness:.2f} | {compare_s:.1f} | "
        f"{compare_s / run_s:.0f} |"
    )


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _twins(weights: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The network, and magnitude 2:4 masks in every convolution but the stem."""
    model = load_factory("cifar_resnet:resnet20", MODELS)()
    model.load_state_dict(load_file(weights))
    dense = onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=20))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels % PATTERN.m == 0:
                keep = PATTERN.keep_largest(np.abs(module.weight.numpy()), group_axis=1)
                module.weight.mul_(torch.from_numpy(keep))
    return dense, onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=20))


def _converted(model: onnx.ModelProto, name: str, images: Array, folder: Path) -> onnx.ModelProto:
    if name == "FP16":
        graph = ir.from_proto(model)
        ConvertFloats("fp16")(graph)
        return ir.to_proto(graph)
    if name == "INT8":
        return quantize(model, images)
    if name == "FP32":
        return model
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "quantized.onnx",
        _Reader(model.graph.input[0].name, images),
        per_channel=True,
        activation_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )
    return onnx.load(folder / "quantized.onnx")


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the images to ONNX Runtime's quantiser, one batch after another."""

    def __init__(self, name: str, images: Array) -> None:
        self._batches = iter([{name: images[start : start + 50]} for start in range(0, len(images), 50)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _images(pixels: npt.NDArray[np.uint8]) -> Array:
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


if __name__ == "__main__":
    main()
