"""The bake stage: the dense twin, the sparse file, the probe, and the report about them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.convert import convert, require_calibration
from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.fit import fit_masks
from masksparse_deploy.bake.pad import pad_channels, padded_weights
from masksparse_deploy.bake.position_options import require_positions_fit
from masksparse_deploy.bake.positions import MaskPositions
from masksparse_deploy.bake.probe import forward, probe_bytes
from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.bake.verify import masked, verify_converted, verify_export, verify_positions, with_checkpoints
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import make_folder, sha256_bytes, write_atomic
from masksparse_deploy.core.masks import MaskSet, fingerprint
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DENSE_NAME", "PROBE_NAME", "REPORT_NAME", "SPARSE_NAME", "UNCONVERTED_NAMES", "bake"]

DENSE_NAME = "dense.onnx"
SPARSE_NAME = "sparse.onnx"
# Both networks before they are converted to a reduced precision: what the validate stage tells its losses by.
UNCONVERTED_NAMES = ("dense.fp32.onnx", "sparse.fp32.onnx")
PROBE_NAME = "probe.safetensors"
REPORT_NAME = "bake.json"

Array = npt.NDArray[np.float32]


def bake(
    dense_model: "nn.Module",
    masks: MaskSet,
    options: BakeOptions,
    *,
    example_shape: tuple[int, int, int],
    source_sha256: str,
    out: Path,
    probe_images: Array,
    calibration: Array | None = None,
    progress: Progress = silent,
) -> BakeReport:
    """Export a network twice over one graph, as it is and with its masks written in, and check what was written.

    Where the mask set brings re-estimated batch-norm statistics or new weights, the sparse file is made from a second export
    with them; otherwise from the dense one, and the files differ in masked values and annotations only. The dense twin always
    is the network as trained. Where masks have groups that are not full, both files get channels of zeros. Where positions are
    masked, the sparse file has a Where behind the convolution (see bake.positions), and the dense twin has none.

    Args:
        dense_model: the trained network, from float32 images (batch, channels, height, width) to logits; left as it was.
        masks: made for exactly these weights.
        options: opset and precision.
        example_shape: (channels, height, width) of one image.
        source_sha256: fingerprint of the network's state dict.
        out: folder for dense.onnx, sparse.onnx, probe.safetensors and, last, bake.json; of a reduced precision also for
            dense.fp32.onnx and sparse.fp32.onnx, the networks before their conversion.
        probe_images: float32 (count, channels, height, width), a handful.
        calibration: likewise, more of them: what ranges and scales of reduced precisions are measured on; INT8 needs them.
        progress: told how far the work is.

    Returns:
        The report that was written.

    Raises:
        ArtifactError: the masks are for other weights or another model, or what was written does not conform.
        UsageError: the network cannot be exported, its weights or outputs are not finite, the calibration images are not
            what the precision needs, or the precision is not for masked positions.
        MachineError: torch or onnxscript is missing, or the folder cannot be written.
    """
    if masks.source_sha256 != source_sha256:
        raise ArtifactError(
            f"masks were made for other weights: the mask set names {masks.source_sha256}, the model has {source_sha256}; "
            "run 'masksparse learn' again"
        )
    require_calibration(options, calibration, example_shape)
    trained = _trained_weights(dense_model, masks)
    _require_places(dense_model, masks)
    require_positions_fit(dense_model, masks, options)
    new = {**trained, **{name: masks.weights[name] for name in masks.layers.keys() & masks.weights.keys()}}
    make_folder(out)
    steps = 6
    progress("dense export", 0, steps)
    exported_bytes = export_onnx(dense_model, example_shape, opset=options.opset)
    dense = _model(exported_bytes)
    padding = pad_channels(dense, masks)
    MarkDense()(dense)
    progress("sparse export", 1, steps)
    if masks.statistics or masks.weights:
        with _with_new_values(dense_model, masks):
            exported_bytes = export_onnx(dense_model, example_shape, opset=options.opset)
    sparse = _model(exported_bytes)
    pad_channels(sparse, masks)
    stored = _in_stored_axes(sparse, padding.masks)
    ApplyMasks(stored)(sparse)
    Annotate(stored)(sparse)
    MaskPositions(stored)(sparse)
    progress("conformity", 2, steps)
    weights, new_weights = (
        _in_axes_of(stored, padded_weights(arrays, padding.masks), padding.masks) for arrays in (trained, new)
    )
    protos = [to_proto(model) for model in (dense, sparse)]
    dense_graph, sparse_graph = _graphs(protos)
    exported = verify_export(dense_graph, verify_positions(sparse_graph, masks)[0], stored, weights, new_weights)
    progress("precision", 3, steps)
    conversions = [
        convert(proto, options, calibration, masks=own, progress=progress)
        for proto, own in zip(protos, (None, stored), strict=True)
    ]
    files = [conversion.model.SerializeToString(deterministic=True) for conversion in conversions]
    unconverted: dict[str, bytes] = {}
    if options.precision != "fp32":
        unconverted = {
            name: proto.SerializeToString(deterministic=True) for name, proto in zip(UNCONVERTED_NAMES, protos, strict=True)
        }
    dense_graph, sparse_graph = _graphs([conversion.model for conversion in conversions])
    sparse_graph, positions = verify_positions(sparse_graph, masks)
    layers = verify_converted(dense_graph, sparse_graph, stored, options.precision)
    progress("reference outputs", 4, steps)
    probe = probe_bytes(
        np.ascontiguousarray(probe_images),
        forward(dense_model, probe_images, {}),
        forward(dense_model, probe_images, {**masks.statistics, **masks.weights, **masked(new, masks)}, masks.positions),
    )
    progress("writing", 5, steps)
    for name, data in ((DENSE_NAME, files[0]), (SPARSE_NAME, files[1]), *unconverted.items(), (PROBE_NAME, probe)):
        write_atomic(out / name, data)
    fp32_digests = [sha256_bytes(unconverted[name]) if name in unconverted else None for name in UNCONVERTED_NAMES]
    report = BakeReport(
        dense_sha256=sha256_bytes(files[0]),
        sparse_sha256=sha256_bytes(files[1]),
        mask_set_sha256=masks.digest,
        probe_sha256=sha256_bytes(probe),
        opset=options.opset,
        precision=options.precision,
        calibration_sha256=_calibration_digest(options, calibration),
        statistics_updated=bool(masks.statistics),
        weights_updated=bool(masks.weights),
        layers=with_checkpoints(exported, layers, stored, new_weights),
        skipped=masks.skipped,
        positions=positions,
        dense_fp32_sha256=fp32_digests[0],
        sparse_fp32_sha256=fp32_digests[1],
        ranges=conversions[1].ranges,
        remarks=conversions[1].remarks,
        padded=padding.layers,
    )
    report.write(out / REPORT_NAME)
    progress("baked", steps, steps)
    return report


def _trained_weights(model: "nn.Module", masks: MaskSet) -> dict[str, Array]:
    parameters = dict(model.named_parameters())
    unknown = sorted(masks.layers.keys() - parameters.keys())
    if unknown:
        raise ArtifactError(
            f"mask of {unknown[0]}: the model has no parameter of that name; the masks were made for another model: run "
            "'masksparse learn' again"
        )
    return {name: parameters[name].detach().cpu().numpy() for name in masks.layers}


def _require_places(model: "nn.Module", masks: MaskSet) -> None:
    """Refuse statistics and weights that the network has no place for."""
    kinds: tuple[tuple[str, str, Mapping[str, Array], dict[str, Any]], ...] = (
        ("statistics", "buffer", masks.statistics, dict(model.named_buffers())),
        ("new weight", "parameter", masks.weights, dict(model.named_parameters())),
    )
    for what, kind, values, tensors in kinds:
        for name, value in values.items():
            if name not in tensors or tuple(tensors[name].shape) != value.shape:
                found = f"has shape {tuple(tensors[name].shape)} there" if name in tensors else "is not in the model"
                raise ArtifactError(
                    f"{what} {name} of the mask set, shape {value.shape}: the {kind} {found}; the masks were made for "
                    "another model: run 'masksparse learn' again"
                )


def _in_stored_axes(model: ir.Model, masks: MaskSet) -> MaskSet:
    """The masks as the exporter stored their weights; a linear layer's may be transposed."""
    fitted = {mask.weight_name: mask for mask in fit_masks(model, masks).values()}
    if all(fitted[name] is mask for name, mask in masks.layers.items()):
        return masks
    return replace(masks, layers=fitted, padded_from=masks.digest)


def _in_axes_of(stored: MaskSet, weights: Mapping[str, Array], given: MaskSet) -> dict[str, Array]:
    """Weights in the axes of the masks `given`, brought into those of the masks `stored`."""
    return {
        name: weight if stored.layers[name].group_axis == given.layers[name].group_axis else weight.T
        for name, weight in weights.items()
    }


def _calibration_digest(options: BakeOptions, calibration: Array | None) -> str | None:
    if options.precision == "fp32" or calibration is None:
        return None
    return fingerprint({"images": calibration})


def _graphs(models: Sequence[onnx.ModelProto]) -> Iterator[Graph]:
    """The dense and the sparse graph, read from the bytes that are written."""
    for name, model in zip((DENSE_NAME, SPARSE_NAME), models, strict=True):
        yield parse_graph(model.SerializeToString(deterministic=True), name=name)


@contextmanager
def _with_new_values(model: "nn.Module", masks: MaskSet) -> Iterator[None]:
    """Lend the network the mask set's batch-norm statistics and weights; not every network can be copied."""
    torch: Any = require("torch", needed_for="exporting to ONNX")
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    lent = [(tensors[name], value) for name, value in {**masks.statistics, **masks.weights}.items()]
    own = [tensor.detach().clone() for tensor, _ in lent]
    try:
        with torch.no_grad():
            for tensor, value in lent:
                tensor.copy_(torch.tensor(value))
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), before in zip(lent, own, strict=True):
                tensor.copy_(before)


def _model(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(data))
