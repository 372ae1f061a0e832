"""From a PyTorch module to the bytes of an ONNX file that say nothing about the machine they were made on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import onnx.checker

from masksparse_deploy.bake.lower_opset import EXPORTED_OPSET, LOWERED_OPSET, lower_opset
from masksparse_deploy.bake.strip import strip_all_notes
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BATCH_NAME", "INPUT_NAME", "OUTPUT_NAME", "export_onnx"]

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
BATCH_NAME = "batch"


def export_onnx(model: "nn.Module", example_shape: tuple[int, int, int], *, opset: int) -> bytes:
    """Export a network to ONNX, batch norm folded into the convolutions, weights inside, batch size free.

    Initializers carry the names of the parameters. Whatever the exporter notes about this machine (stack traces, source
    paths, build of torch) is removed: the same weights give the same bytes.

    Args:
        model: from float32 images (batch, channels, height, width) to one float32 tensor; exported in eval mode, and left
            as it was.
        example_shape: (channels, height, width) of one image.
        opset: the operator set of the file.

    Returns:
        The content of the ONNX file, input "images", output "logits".

    Raises:
        MachineError: torch or onnxscript is missing.
        UsageError: the network cannot be exported, has more than one output, or the exporter does not offer this opset.
    """
    torch = require("torch", needed_for="exporting to ONNX")
    require("onnxscript", needed_for="exporting to ONNX")
    # Two images: with one the exporter would take the batch size for a constant.
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    example = torch.zeros((2, *example_shape), dtype=torch.float32, device=device)
    exported_opset = EXPORTED_OPSET if opset == LOWERED_OPSET else opset
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=exported_opset,
                dynamo=True,
                dynamic_shapes=({0: BATCH_NAME},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # tracing runs the user's model and may raise anything
        raise UsageError(
            f"the network cannot be exported to ONNX for images of shape {example_shape} ({_root_reason(error)}); "
            "its forward must take one image batch and be traceable by torch.export"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    proto: onnx.ModelProto = program.model_proto
    _require_expected(proto, exported_opset)
    strip_all_notes(proto)
    if opset == LOWERED_OPSET:
        lower_opset(proto)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _root_reason(error: BaseException) -> str:
    """The first line of what went wrong first; the exporter wraps it in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about its own internals from the user; warnings about the model still come through."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it remarks that torchvision, which is not used, is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
            yield
    finally:
        registration.setLevel(level)


def _require_expected(proto: onnx.ModelProto, opset: int) -> None:
    """The exporter replaces an opset it does not offer by another one without an error."""
    found = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if found != opset:
        raise UsageError(f"bake.opset: asked for {opset}, but the exporter of this PyTorch wrote {found}; ask for that one")
    if len(proto.graph.output) != 1:
        names = ", ".join(value.name for value in proto.graph.output)
        raise UsageError(
            f"the network has {len(proto.graph.output)} outputs ({names}); wrap it so that it returns the logits only"
        )
