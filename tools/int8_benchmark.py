"""What INT8 costs in accuracy with each calibration, and what it gains, on the pretrained CIFAR-10 ResNets.

    python tools/int8_benchmark.py --data ../shared/data

exports the network dense and with magnitude 2:4 masks (batch-norm statistics re-estimated), quantizes both, and prints the
top-1 accuracy on test images and the time of one image on ONNX Runtime, one thread, as a Markdown table.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.precision.calibration import CalibrationMethod
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.bake.precision.quantized_check import check_quantized
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["main"]

NETWORKS = {"resnet20": "cifar10_resnet20-12fca82f.safetensors", "resnet32": "cifar10_resnet32-d509ac18.safetensors"}
MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS_IMAGES = 2000
TIMING_ROUNDS = 200

Array = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, quantize, measure, print."""
    parser = argparse.ArgumentParser(description="Accuracy and speed of INT8 on CIFAR-10.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--opset", type=int, default=20)
    parser.add_argument("--calibration-count", type=int, default=500)
    parser.add_argument("--test-count", type=int, default=2000)
    given = parser.parse_args(arguments)
    train = _images(load_factory("read_cifar10:train_set", given.data)((1,))[0][:STATISTICS_IMAGES])
    test_pixels, labels, _ = load_factory("read_cifar10:test_set", given.data)()
    test, labels = _images(test_pixels[: given.test_count]), labels[: given.test_count]
    model = load_factory(f"cifar_resnet:{given.network}", MODELS)()
    model.load_state_dict(load_file(given.data / "weights" / NETWORKS[given.network]))
    print("| weights | precision | top-1 | same class as FP32 | ms per image |\n|---|---|---|---|---|")
    for weights in ("dense", "2:4"):
        if weights == "2:4":
            _mask(model, train)
        exported = onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=given.opset))
        sessions = {"FP32": _session(exported)}
        for method in get_args(CalibrationMethod):
            start = time.monotonic()
            quantized = quantize(exported, train[: given.calibration_count], method=method)
            print(f"{weights} {method}: quantized in {time.monotonic() - start:.1f} s", file=sys.stderr)
            findings = check_quantized(parse_graph(quantized.SerializeToString(), name=method))
            if findings:
                raise SystemExit("; ".join(findings))
            sessions[f"INT8 {method}"] = _session(quantized)
        classes = {name: _classes(session, test) for name, session in sessions.items()}
        times = _times(sessions, test[:1])
        for name, found in classes.items():
            accuracy, same = np.mean(found == labels), np.mean(found == classes["FP32"])
            print(f"| {weights} | {name} | {accuracy:.2%} | {same:.2%} | {times[name]:.3f} |")


def _images(pixels: npt.NDArray[np.uint8]) -> Array:
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _mask(model: Any, images: Array) -> None:
    """Magnitude 2:4 along the input channels of every convolution but the stem, batch-norm statistics as they are then."""
    pattern = NMPattern(n=2, m=4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels % pattern.m == 0:
                keep = pattern.keep_largest(np.abs(module.weight.numpy()), group_axis=1)
                module.weight.mul_(torch.from_numpy(keep))
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        for start in range(0, len(images), 100):
            model(torch.from_numpy(images[start : start + 100]))
        model.eval()


def _session(model: onnx.ModelProto) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def _classes(session: Any, images: Array) -> npt.NDArray[np.int64]:
    name = session.get_inputs()[0].name
    batches = [session.run(None, {name: images[start : start + 100]})[0] for start in range(0, len(images), 100)]
    classes: npt.NDArray[np.int64] = np.concatenate(batches).argmax(axis=1)
    return classes


def _times(sessions: dict[str, Any], image: Array) -> dict[str, float]:
    """Median milliseconds of one inference; the sessions take turns."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(TIMING_ROUNDS):
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: image}
            start = time.perf_counter()
            session.run(None, feed)
            found[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
