"""Baking an ONNX file that exists already, from whichever exporter, without PyTorch."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import check_conformity, count_groups, each_layer
from masksparse_deploy.bake.convert import convert
from masksparse_deploy.bake.fit import fit_masks
from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.bake.pad import pad_channels
from masksparse_deploy.bake.proto_twins import any_content, constants, identical, proto_differences, tensor_array
from masksparse_deploy.bake.storage import (
    data_layout,
    load_proto,
    proto_with_data,
    renamed,
    staged_folder,
    to_ir,
    write_model,
)
from masksparse_deploy.bake.stored import stored_tensor, stored_values
from masksparse_deploy.bake.strip import strip_annotations, strip_machine_notes
from masksparse_deploy.bake.trace import trace_weights
from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport, LayerRange
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet, fingerprint
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.annotations import PREFIX
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph

__all__ = ["bake_file"]

DENSE_NAME = "dense.onnx"
SPARSE_NAME = "sparse.onnx"
REPORT_NAME = "bake.json"

_PRECISIONS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
}

Array = npt.NDArray[np.float32]


def bake_file(
    onnx_path: Path,
    masks: MaskSet,
    options: BakeOptions,
    *,
    out: Path,
    calibration: Array | None = None,
    progress: Progress = silent,
) -> BakeReport:
    """Write masks into an ONNX file, beside a dense twin of it, and check what was written.

    The file keeps all that is its user's: names, opsets, custom domains, metadata, documentation, and data files beside it.
    What exporters note about the machine, and the annotations of an earlier baking, are left out.

    Args:
        onnx_path: its constants have the names of the masks. FP32, or in a reduced precision already, which it then keeps.
        masks: without permutations, batch-norm statistics, new weights and positions, which need the PyTorch model. They may be
            in the axes of the stored weight or of the operator that reads it, or transposed as PyTorch's linear weights are.
        options: precision and calibration. The file keeps its own operator set, whatever `options.opset` says.
        out: folder for dense.onnx, sparse.onnx, their data files if there are any, and bake.json.
        calibration: float32 (count, ...), what goes into the network's input; only for reduced precisions.
        progress: told how far the work is.

    Returns:
        The report that was written.

    Raises:
        UsageError: the file cannot be rewritten without loss, would be overwritten, or the masks need the PyTorch model.
        ArtifactError: the file is damaged, the masks do not fit it, or what was made does not conform to them.
        OutputError: the folder cannot be written; nothing is left half-written.
    """
    _refuse_module_masks(masks)
    steps = 5
    progress("reading", 0, steps)
    opset = read_graph(onnx_path).opsets[""]  # refuses what is damaged or reaches out of the file's folder
    source = load_proto(onnx_path)
    strip_machine_notes(source)
    strip_annotations(source, PREFIX)
    dense, sparse = (to_ir(source, onnx_path.parent) for _ in range(2))
    layout = data_layout(dense)
    _refuse_overwriting(onnx_path, layout, out)
    progress("masking", 1, steps)
    _require_names(dense, masks, onnx_path)
    precision = _precision(dense, masks, options)
    fitted = masks.padded({mask.weight_name: mask for mask in fit_masks(dense, masks).values()})
    padding = pad_channels(dense, fitted)
    pad_channels(sparse, fitted)
    MarkDense()(dense)
    ApplyMasks(padding.masks)(sparse)
    Annotate(padding.masks)(sparse)
    readers = {weight.initializer.name or "": weight.node.name or "" for weight in trace_weights(sparse)}
    progress("converting", 2, steps)
    twins = _converted(dense, sparse, padding.masks, options, calibration)
    measured = options.precision != "fp32"
    with staged_folder(out) as folder:
        progress("writing", 3, steps)
        for name, model in ((DENSE_NAME, twins.dense), (SPARSE_NAME, twins.sparse)):
            write_model(model, folder / name, layout=layout)
        progress("checking", 4, steps)
        written = {name: read_graph(folder / name) for name in (DENSE_NAME, SPARSE_NAME)}
        layers = _check(folder, written[SPARSE_NAME], padding.masks, readers, exact=options.precision != "int8")
        report = BakeReport(
            origin="onnx",
            dense_sha256=written[DENSE_NAME].sha256,
            sparse_sha256=written[SPARSE_NAME].sha256,
            mask_set_sha256=masks.digest,
            probe_sha256=None,
            opset=opset,
            precision=precision,
            calibration_sha256=fingerprint({"images": calibration}) if measured and calibration is not None else None,
            statistics_updated=False,
            layers=layers,
            skipped=masks.skipped,
            ranges=twins.ranges,
            remarks=twins.remarks,
            padded=padding.layers,
        )
        report.write(folder / REPORT_NAME)
    progress("baked", steps, steps)
    return report


def _refuse_module_masks(masks: MaskSet) -> None:
    parts = (
        ("permutations", masks.permutations),
        ("batch-norm statistics", masks.statistics),
        ("new weights", masks.weights),
        ("masks of positions", masks.positions),
    )
    brings = [what for what, found in parts if found]
    if brings:
        raise UsageError(
            f"the mask set brings {_listed(brings)} of the PyTorch model, which cannot be written into an ONNX file; bake "
            "from the model with --factory and --weights"
        )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _refuse_overwriting(onnx_path: Path, layout: Mapping[str, str], out: Path) -> None:
    inputs = [onnx_path, *(onnx_path.parent / location for location in layout.values())]
    written = {(out / name).resolve() for name in _written_names(layout)}
    for path in inputs:
        if path.resolve() in written:
            raise UsageError(f"{path} would be overwritten by what is made from it; choose another output folder than {out}")


def _written_names(layout: Mapping[str, str]) -> Iterator[str]:
    yield REPORT_NAME
    for name in (DENSE_NAME, SPARSE_NAME):
        yield name
        yield from (renamed(location, Path(name)) for location in layout.values())


def _require_names(model: ir.Model, masks: MaskSet, path: Path) -> None:
    """Say at once how many masks find nothing; `fit_masks` tells more about those that find something else."""
    names = {value.name for value in stored_values(model)}
    missing = [name for name in masks.layers if name not in names]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(masks.layers)} masks find no weight of their name in {path} ({_some(missing)}); the masks "
            "were made for another model, or the exporter gave its weights other names: export with the parameters' names kept"
        )


def _precision(model: ir.Model, masks: MaskSet, options: BakeOptions) -> str:
    """The precision of the files: that of the weights, unless these are FP32 and shall be converted."""
    types = {stored_tensor(value).dtype for value in stored_values(model) if value.name in masks.layers}
    found = "+".join(sorted(_PRECISIONS.get(dtype, dtype.name.lower()) for dtype in types))
    if found in ("", "fp32"):
        return options.precision
    if options.precision != "fp32":
        raise UsageError(
            f"the weights of the ONNX file are {found} already, and only fp32 can be converted to {options.precision}; bake "
            "with bake.precision fp32, which leaves them as they are, or from the FP32 file"
        )
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class _Twins:
    dense: ir.Model
    sparse: ir.Model
    ranges: tuple[LayerRange, ...] = ()
    remarks: tuple[str, ...] = ()


def _converted(dense: ir.Model, sparse: ir.Model, masks: MaskSet, options: BakeOptions, images: Array | None) -> _Twins:
    """Both models in the precision asked for, brought there in the same way."""
    if options.precision == "fp32":
        return _Twins(dense=dense, sparse=sparse)
    of_dense = convert(proto_with_data(dense), options, images)
    of_sparse = convert(proto_with_data(sparse), options, images, masks=masks)
    return _Twins(
        dense=to_ir(of_dense.model, Path()),
        sparse=to_ir(of_sparse.model, Path()),
        ranges=of_sparse.ranges,
        remarks=of_sparse.remarks,
    )


def _check(folder: Path, graph: Graph, masks: MaskSet, readers: Mapping[str, str], *, exact: bool) -> tuple[BakedLayer, ...]:
    """Read both files anew: one graph, other values only where a mask drops them, and every mask where it belongs.

    Args:
        folder: holds both files.
        graph: the sparse one.
        masks: in the axes of the stored constants.
        readers: name of each constant -> an operator that multiplies by it, for the report on those in functions.
        exact: whether kept weights are the same in both files; INT8 gives each file scales of its own.
    """
    dense, sparse = (load_proto(folder / name) for name in (DENSE_NAME, SPARSE_NAME))

    def same_content(name: str, one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
        expected, found = tensor_array(one, folder), tensor_array(other, folder)
        mask = masks.layers.get(name)
        if mask is not None:
            expected = np.where(mask.keep, expected, np.zeros((), dtype=expected.dtype))
        return identical(expected, found)

    differences = proto_differences(dense, sparse, same_content if exact else any_content)
    findings = [f"dense and sparse file differ in {path}" for path in differences]
    listed = {layer.stored_name for layer in each_layer(graph)}
    functions = {name: readers[name] for name in masks.layers if name not in listed}
    rest = {name: mask for name, mask in masks.layers.items() if name in listed}
    conformity = check_conformity(graph, dataclasses.replace(masks, layers=rest, padded_from=masks.digest))
    findings += conformity.findings
    layers = (*conformity.layers, *_layers_in_functions(sparse, masks, functions, folder))
    findings += [f"{layer.node}: {layer.violation_count} groups keep too many" for layer in layers if layer.violation_count]
    if not findings:  # the linter is what others will hold the file against
        report = lint_graph(graph, name=SPARSE_NAME)
        findings += report.findings
        findings += [f"{layer.node}: {layer.why}" for layer in report.layers if layer.state == "broken claim"]
    if findings:
        raise ArtifactError(
            f"the sparse ONNX file does not conform to its masks ({_some(findings)}); nothing was written: exclude the layer "
            "with mask.exclude when learning the masks"
        )
    return layers


def _layers_in_functions(
    model: onnx.ModelProto, masks: MaskSet, readers: Mapping[str, str], folder: Path
) -> Iterator[BakedLayer]:
    """What a file holds of the masks of constants that functions hold, which inlining names anew: those of `readers`."""
    for name, tensor in constants(model):
        if name not in readers:
            continue
        mask, values = masks.layers[name], tensor_array(tensor, folder)
        group_count, violation_count = count_groups(
            values,
            mask.pattern,
            output_axis=0 if mask.group_axis == 1 else values.ndim - 1,
            group_axis=mask.group_axis,
        )
        yield BakedLayer(
            layer=name.removesuffix(".weight"),
            weight_name=name,
            node=readers[name],
            initializer=name,
            shape=values.shape,
            pattern=str(mask.pattern),
            group_axis=mask.group_axis,
            density=float(np.count_nonzero(values) / values.size),
            group_count=group_count,
            violation_count=violation_count,
            mask_sha256=mask.digest,
        )


def _some(findings: Sequence[str]) -> str:
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    return "; ".join(findings[:3]) + more
