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
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from safetensors.torch import load_file

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.positions import MaskPositions
from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import END_TO_END, LAYERWISE, Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.core.samples import Samples

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
    print("| dropped | in | layerwise (median) | (d) / all (median) | data-free | norms | residuals | hybrid | certified |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rate in RATES:
        for last, with_weights in ((False, False), (True, False), *(((False, True),) if rate == RATES[-1] else ())):
            print(row(given.data / "weights" / WEIGHTS, samples, rate, last=last, with_weights=with_weights), flush=True)


def row(weights: Path, samples: Samples, rate: float, *, last: bool, with_weights: bool) -> str:
    """Drop the share `rate` of positions in all layers or the last, perhaps with 2:4 weights, certify; a row of the table."""
    model = load_factory("cifar_resnet:resnet20", MODELS)()
    model.load_state_dict(load_file(weights))
    dense = onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=20))
    if with_weights:
        _mask_weights(model)
    sparse = ir.from_proto(onnx.load_model_from_string(export_onnx(model, (3, 32, 32), opset=20)))
    positions = _positions(model, rate, last=last)
    MaskPositions(MaskSet(layers={}, source_sha256="0" * 64, method="positions", positions=positions))(sparse)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "dense.onnx", Path(folder) / "sparse.onnx"
        for path, proto in zip(paths, (dense, to_proto(sparse)), strict=True):
            path.write_bytes(proto.SerializeToString())
        certificate = certify(*paths, samples, CertifyOptions(sample_count=len(samples)))
    where = f"{len(positions)} layers" + (", and 2:4" if with_weights else "")
    return f"| {rate:.0%} | {where} | " + " | ".join(_figures(certificate)) + " |"


def _figures(certificate: Certificate) -> list[str]:
    claims = {claim.name: claim for claim in certificate.claims}
    # "... the bounds are 2.1 times the largest measured gain (median over layers)."
    median = claims[LAYERWISE].detail.partition("the bounds are ")[2].partition(" times")[0]
    ratio = statistics.median(layer.difference_norm / layer.dense_norm for layer in certificate.layers)
    final = claims[END_TO_END[-1]]
    tightness = [f"{claims[name].tightness or 0:.2g}" for name in END_TO_END]
    return [median, f"{ratio:.2f}", *tightness, f"{final.certified_count} of {final.sample_count}"]


def _positions(model: torch.nn.Module, rate: float, *, last: bool) -> dict[str, PositionMask]:
    """Random masks of the 3x3 convolutions behind the stem, by layer; each layer has its own."""
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels % PATTERN.m == 0:
            module.register_forward_hook(lambda _, inputs, output, name=name: sizes.update({name: tuple(output.shape[2:])}))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    generator = np.random.default_rng(0)
    chosen = list(sizes)[-1:] if last else list(sizes)
    return {name: PositionMask(layer=name, keep=_keep(sizes[name], rate, generator)) for name in chosen}


def _keep(size: tuple[int, ...], rate: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    keep = np.ones(size, dtype=np.bool_)
    keep.reshape(-1)[generator.permutation(keep.size)[: round(rate * keep.size)]] = False
    return keep


def _mask_weights(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels % PATTERN.m == 0:
                keep = PATTERN.keep_largest(np.abs(module.weight.numpy()), group_axis=1)
                module.weight.mul_(torch.from_numpy(keep))


if __name__ == "__main__":
    main()
