"""From the FP32 graph to the precision of the file, with what that costs each layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.annotate import Annotate
from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.bake.precision.quantized_check import check_quantized, float_layers
from masksparse_deploy.bake.precision.quantized_losses import quantization_losses
from masksparse_deploy.bake.precision.ranges import check_ranges, measure_ranges
from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.core.artifacts.baking import LayerRange
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["Conversion", "convert", "require_calibration"]

# Above this share of nonzero weights or outputs that become zero, a layer is worth a remark.
_REMARKABLE = 0.01

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Conversion:
    """A converted model, what each of its layers loses, and what of that a user should know, in words."""

    model: onnx.ModelProto
    ranges: tuple[LayerRange, ...] = ()
    remarks: tuple[str, ...] = ()


def require_calibration(options: BakeOptions, images: Array | None, example_shape: tuple[int, ...] | None = None) -> None:
    """Check that there are the images that `options.precision` needs.

    Args:
        options: of the bake stage.
        images: float32 (count, ...), None if there are none.
        example_shape: of one image as the network takes it, if that is known.

    Raises:
        UsageError: there are none for INT8, or they are of another size.
    """
    if options.precision == "int8" and images is None:
        raise UsageError("bake.precision int8 needs images to calibrate scales on; give --calibration, as the training images")
    if options.precision != "fp32" and images is not None and example_shape not in (None, images.shape[1:]):
        raise UsageError(
            f"calibration images have the shape {images.shape[1:]}, the network takes {example_shape}; give images like those "
            "that it was trained on"
        )


def convert(
    model: onnx.ModelProto,
    options: BakeOptions,
    images: Array | None,
    *,
    masks: MaskSet | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Bring a model from FP32 to `options.precision`; FP32 leaves it as it is.

    Args:
        model: FP32, all weights loaded; not changed.
        options: precision, and the method of calibration.
        images: float32 (count, ...), what ranges are measured on; INT8 cannot do without.
        masks: what the model is annotated with anew, as densities are those of the converted weights; None for a dense twin.
        progress: told how far the work is.

    Raises:
        UsageError: a weight overflows, there are no images for INT8, or the operator set lacks the precision.
        ArtifactError: the INT8 model is not what it should be.
    """
    if options.precision == "fp32":
        return Conversion(model=model)
    conversion = (
        _quantized(model, options, images, progress)
        if options.precision == "int8"
        else _lowered(model, options, images, progress)
    )
    if masks is None:
        return conversion
    annotated = ir.from_proto(conversion.model)
    Annotate(masks)(annotated)
    return Conversion(model=to_proto(annotated), ranges=conversion.ranges, remarks=conversion.remarks)


def _lowered(model: onnx.ModelProto, options: BakeOptions, images: Array | None, progress: Progress) -> Conversion:
    assert options.precision in ("fp16", "bf16")
    ranges = measure_ranges(model, options.precision, images, progress)
    remarks = check_ranges(ranges, options.precision)
    lowered = ir.from_proto(model)
    ConvertFloats(options.precision)(lowered)
    return Conversion(model=to_proto(lowered), ranges=ranges, remarks=remarks)


def _quantized(model: onnx.ModelProto, options: BakeOptions, images: Array | None, progress: Progress) -> Conversion:
    require_calibration(options, images)
    assert images is not None, "it was required"
    quantized = quantize(model, images, method=options.calibration_method, progress=progress)
    graph = parse_graph(quantized.SerializeToString(), name="the INT8 model")
    findings = check_quantized(graph)
    if findings:
        raise ArtifactError(
            f"the INT8 model is not symmetric Q/DQ throughout ({'; '.join(findings[:3])}); nothing was written: use fp16, and "
            "report this"
        )
    ranges = quantization_losses(model, graph, images, progress=progress)
    left = [f"{node}: {why}" for node, why in float_layers(graph).items()]
    return Conversion(model=quantized, ranges=ranges, remarks=(*left, *_remarks(ranges)))


def _remarks(ranges: Sequence[LayerRange]) -> Iterator[str]:
    for row in ranges:
        share = row.weight_flushed_count / max(row.weight_nonzero_count, 1)
        if share > _REMARKABLE:
            yield f"{row.node}: {share:.1%} of its nonzero weights become 0 in INT8"
