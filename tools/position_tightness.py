"""How near the bounds for masked positions come to what is measured, on a CIFAR-10 ResNet.

    OMP_NUM_THREADS=1 python -m tools.position_tightness --data ../shared/data

Positions are dropped at random, in each of the 18 convolutions between the stem and the pool or in the last of them alone, with
the trained dense weights; 2:4 masks come on top in one row. For scale the layers' bound (d) beside the norm for all positions.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
from safetensors.torch import load_file

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.positions import MaskPositions
from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.certify.layers import known_shapes
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import END_TO_END, LAYERWISE, Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.reader import parse_graph, weighted_layers

__all__ = ["main", "row"]

MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"
WEIGHTS = "cifar10_resnet20-12fca82f.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATTERN = NMPattern(n=2, m=4)
RATES = (0.1, 0.2, 0.3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, draw masks, certify, print a table."""
    parser = argparse.ArgumentParser(description="Tightness of bounds for masked positions on CIFAR-10.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--count", type=int, default=100, help="test images")
    given = parser.parse_args(arguments)
    pixels = load_factory("read_cifar10:test_set", given.data)()[0][: given.count]
    images = ((np.asarray(pixels, dtype=np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    samples = Samples(images, np.zeros(len(images), dtype=np.int64))
    model = load_factory("cifar_resnet:resnet20", MODELS)()
    model.load_state_dict(load_file(given.data / "weights" / WEIGHTS))
    dense = onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=20))
    print("| dropped | in | layerwise (median) | (d) / all (median) | data-free | norms | residuals | hybrid | certified |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rate in RATES:
        for last in (False, True):
            print(row(dense, samples, rate, last=last), flush=True)
    print(row(dense, samples, RATES[-1], with_weights=True), flush=True)


def row(dense: onnx.ModelProto, samples: Samples, rate: float, *, last: bool = False, with_weights: bool = False) -> str:
    """Drop the share `rate` of positions in all layers or the last, perhaps with 2:4 weights, certify; a row of the table."""
    positions = _positions(dense, rate, last=last)
    sparse = ir.from_proto(_with_masked_weights(dense) if with_weights else dense)
    MaskPositions(MaskSet(layers={}, source_sha256="0" * 64, method="positions", positions=positions))(sparse)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "dense.onnx", Path(folder) / "sparse.onnx"
        for path, proto in zip(paths, (dense, to_proto(sparse)), strict=True):
            path.write_bytes(proto.SerializeToString())
        certificate = certify(*paths, samples, CertifyOptions(sample_count=len(samples)))
    where = ("last layer" if last else f"{len(positions)} layers") + (", and 2:4" if with_weights else "")
    return f"| {rate:.0%} | {where} | " + " | ".join(_figures(certificate)) + " |"


def _figures(certificate: Certificate) -> list[str]:
    claims = {claim.name: claim for claim in certificate.claims}
    # "... the bounds are 2.1 times the largest measured gain (median over layers)."
    median = claims[LAYERWISE].detail.partition("the bounds are ")[2].partition(" times")[0]
    ratio = statistics.median(layer.difference_norm / layer.dense_norm for layer in certificate.layers)
    final = claims[END_TO_END[-1]]
    tightness = [f"{claims[name].tightness or 0:.2g}" for name in END_TO_END]
    return [median, f"{ratio:.2f}", *tightness, f"{final.certified_count} of {final.sample_count}"]


def _positions(dense: onnx.ModelProto, rate: float, *, last: bool) -> dict[str, PositionMask]:
    """Random masks of the convolutions behind the stem, by layer; each layer has its own."""
    graph = parse_graph(dense.SerializeToString(), name="dense.onnx")
    shapes, generator = known_shapes(graph), np.random.default_rng(0)
    masks = {}
    for layer in weighted_layers(graph):
        if layer.node.op == "Conv" and layer.weight.shape[1] % PATTERN.m == 0 and layer.kernel_positions > 1:
            name = layer.stored_name.removesuffix(".weight")
            keep = np.ones(shapes[layer.node.outputs[0]][1:], dtype=np.bool_)
            keep.reshape(-1)[generator.permutation(keep.size)[: round(rate * keep.size)]] = False
            masks[name] = PositionMask(layer=name, keep=keep)
    return dict(list(masks.items())[-1:]) if last else masks


def _with_masked_weights(dense: onnx.ModelProto) -> onnx.ModelProto:
    """The same with magnitude 2:4 masks in the same layers."""
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)
    for tensor in sparse.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 4 and array.shape[1] % PATTERN.m == 0:
            keep = PATTERN.keep_largest(np.abs(array), group_axis=1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(keep, array, np.float32(0)), tensor.name))
    return sparse


if __name__ == "__main__":
    main()
