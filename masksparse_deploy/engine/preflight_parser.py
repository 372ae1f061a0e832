"""NVIDIA's ONNX parser in a process of its own, which a crash or a hang of the native library may take down.

`python -m masksparse_deploy.engine.preflight_parser FILE FOLDER [--build]` writes FOLDER/parsed.json and one array for each
weight that the parser shows. The engine is built, where that is asked for, after the file was written first, so that a crash
of the builder does not take the parser's answer with it.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.document import Document, Record
from masksparse_deploy.core.artifacts.preflight import ParserError
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.optional import require
from masksparse_deploy.engine.inspector import onnx_nodes
from masksparse_deploy.engine.preflight_values import UnreadableWeightError
from masksparse_deploy.engine.preflight_weights import weight_of

__all__ = ["RESULT_NAME", "ParsedLayer", "ParsedNetwork", "main"]

RESULT_NAME = "parsed.json"

_KINDS = {"CONVOLUTION": "convolution", "DECONVOLUTION": "deconvolution", "MATRIX_MULTIPLY": "matrix product"}
# Dynamic lengths in the build: one image says whether the network builds as well as many do.
_DYNAMIC_LENGTH = 1


class ParsedLayer(Record):
    """A layer that multiplies; `values` is the file with its weight, "" where the parser shows none, and `why` says why.

    The weight is float32, or the type it is stored in (`dtype`); (out_channels, in_channels / groups, kernel ...) for a
    convolution, (in_channels, out_channels / groups, kernel ...) for a deconvolution, and as stored for a matrix product.
    `route` are the parser's layers between the stored constant and the product; `group_axis` that of the input channels.
    """

    node: str
    kind: str
    dtype: str
    group_axis: int
    route: tuple[str, ...]
    values: str
    why: str


class ParsedNetwork(Document):
    """What the parser says about one file; `built` is None unless a build was tried."""

    kind = "parsed network"

    versions: dict[str, str]
    parsed: bool
    built: bool | None
    errors: tuple[ParserError, ...]
    warnings: tuple[str, ...]
    layers: tuple[ParsedLayer, ...]


def main(arguments: list[str]) -> int:
    """Parse the file and write what was seen; 3 where the package is missing, like the command line."""
    file, folder = Path(arguments[0]), Path(arguments[1])
    try:
        trt: Any = require("tensorrt_rtx", needed_for="reading an ONNX file with NVIDIA's parser")
    except MachineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    accepted = bool(parser.parse_from_file(str(file)))
    errors = tuple(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
    found = ParsedNetwork(
        versions={"tensorrt-rtx": str(trt.__version__)},
        parsed=accepted and not errors,
        built=None,
        errors=errors,
        warnings=tuple(dict.fromkeys(logger.warnings)),
        layers=tuple(_layers(trt, network, folder)),
    )
    found.write(folder / RESULT_NAME)
    if "--build" in arguments and found.parsed:
        logger.errors.clear()
        plan = builder.build_serialized_network(network, _build_config(trt, builder, network))
        refused = () if plan is not None else tuple(ParserError(node="", op="", message=text) for text in logger.errors)
        found.model_copy(update={"built": plan is not None, "errors": refused}).write(folder / RESULT_NAME)
    return 0


def _make_logger(trt: Any) -> Any:
    """Keeps warnings and errors; nothing is printed. The class can only be made once the package is there."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return KeepingLogger()


def _parser_error(error: Any) -> ParserError:
    return ParserError(node=error.node_name(), op=error.node_operator(), message=f"{error.desc()} ({error.code().name})")


def _layers(trt: Any, network: Any, folder: Path) -> Iterator[ParsedLayer]:
    producers = _producers(network)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = _KINDS.get(layer.type.name)
        if kind is None:
            continue
        name = next(iter(onnx_nodes(layer.metadata)), layer.name)
        try:
            weight = weight_of(trt, layer, producers)
        except UnreadableWeightError as error:
            yield ParsedLayer(node=name, kind=kind, dtype="", group_axis=0, route=(), values="", why=str(error))
            continue
        values = f"{index}.npy"
        np.save(folder / values, weight.values, allow_pickle=False)
        yield ParsedLayer(
            node=name,
            kind=kind,
            dtype=weight.dtype,
            group_axis=weight.group_axis,
            route=weight.route,
            values=values,
            why="",
        )


def _producers(network: Any) -> Mapping[str, Any]:
    """For each tensor the layer that computes it."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}


def _build_config(trt: Any, builder: Any, network: Any) -> Any:
    """A build for one fixed kind of GPU, so that the answer does not depend on the machine it is asked on.

    Compute capability 8.9 is the oldest that has all the types that files of ours may hold.
    """
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(_DYNAMIC_LENGTH if length < 0 else length for length in tensor.shape)
        shapes.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(shapes)
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
