"""The bake stage: the dense twin, the sparse file, the probe, and the report about them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.fidelity import changed_kept_weights, foreign_kernels
from masksparse_deploy.bake.probe import forward, probe_bytes
from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import make_folder, sha256_bytes, write_atomic
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DENSE_NAME", "PROBE_NAME", "REPORT_NAME", "SPARSE_NAME", "bake"]

DENSE_NAME = "dense.onnx"
SPARSE_NAME = "sparse.onnx"
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
    progress: Progress = silent,
) -> BakeReport:
    """Export a network twice over one graph, as it is and with its masks written in, and check what was written.

    Where the mask set brings re-estimated batch-norm statistics, the sparse file is made from a second export with them;
    otherwise from the dense one, and the files differ in masked values and annotations only.

    Args:
        dense_model: the trained network, from float32 images (batch, channels, height, width) to logits; left as it was.
        masks: made for exactly these weights.
        options: opset and precision.
        example_shape: (channels, height, width) of one image.
        source_sha256: fingerprint of the network's state dict.
        out: folder for dense.onnx, sparse.onnx, probe.safetensors and, last, bake.json.
        probe_images: float32 (count, channels, height, width), a handful.
        progress: told how far the work is.

    Returns:
        The report that was written.

    Raises:
        ArtifactError: the masks are for other weights or another model, or what was written does not conform.
        UsageError: the network cannot be exported, or its weights or outputs are not finite.
        MachineError: torch or onnxscript is missing, or the folder cannot be written.
    """
    if masks.source_sha256 != source_sha256:
        raise ArtifactError(
            f"masks were made for other weights: the mask set names {masks.source_sha256}, the model has {source_sha256}; "
            "run 'masksparse learn' again"
        )
    trained = _trained_weights(dense_model, masks)
    make_folder(out)
    steps = 5
    progress("dense export", 0, steps)
    exported = export_onnx(dense_model, example_shape, opset=options.opset)
    dense_bytes = _rewritten(exported, MarkDense())
    progress("sparse export", 1, steps)
    if masks.statistics:
        with _with_statistics(dense_model, masks):
            exported = export_onnx(dense_model, example_shape, opset=options.opset)
    sparse_bytes = _rewritten(exported, ApplyMasks(masks), Annotate(masks))
    progress("conformity", 2, steps)
    layers = _check(dense_bytes, sparse_bytes, masks, trained)
    progress("reference outputs", 3, steps)
    replaced = {**masks.statistics, **_masked(trained, masks)}
    probe = probe_bytes(
        np.ascontiguousarray(probe_images),
        forward(dense_model, probe_images, {}),
        forward(dense_model, probe_images, replaced),
    )
    progress("writing", 4, steps)
    for name, data in ((DENSE_NAME, dense_bytes), (SPARSE_NAME, sparse_bytes), (PROBE_NAME, probe)):
        write_atomic(out / name, data)
    report = BakeReport(
        dense_sha256=sha256_bytes(dense_bytes),
        sparse_sha256=sha256_bytes(sparse_bytes),
        mask_set_sha256=masks.digest,
        probe_sha256=sha256_bytes(probe),
        opset=options.opset,
        precision=options.precision,
        statistics_updated=bool(masks.statistics),
        layers=layers,
        skipped=masks.skipped,
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


def _masked(weights: Mapping[str, Array], masks: MaskSet) -> dict[str, Array]:
    return {name: np.where(mask.keep, weights[name], np.float32(0)) for name, mask in masks.layers.items()}


@contextmanager
def _with_statistics(model: "nn.Module", masks: MaskSet) -> Iterator[None]:
    """Lend the network the mask set's batch-norm statistics; not every network can be copied."""
    torch: Any = require("torch", needed_for="exporting to ONNX")
    buffers = dict(model.named_buffers())
    for name, value in masks.statistics.items():
        if name not in buffers or tuple(buffers[name].shape) != value.shape:
            found = f"has shape {tuple(buffers[name].shape)} there" if name in buffers else "is not in the model"
            raise ArtifactError(
                f"statistics {name} of the mask set, shape {value.shape}: the buffer {found}; the masks were made for "
                "another model: run 'masksparse learn' again"
            )
    own = {name: buffers[name].clone() for name in masks.statistics}
    try:
        with torch.no_grad():
            for name, value in masks.statistics.items():
                buffers[name].copy_(torch.tensor(value))
        yield
    finally:
        with torch.no_grad():
            for name, before in own.items():
                buffers[name].copy_(before)


def _rewritten(data: bytes, *passes: ir.passes.PassBase) -> bytes:
    model = ir.from_proto(onnx.load_model_from_string(data))
    for rewrite in passes:
        rewrite(model)
    rewritten: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return rewritten


def _check(dense_bytes: bytes, sparse_bytes: bytes, masks: MaskSet, trained: Mapping[str, Array]) -> tuple[BakedLayer, ...]:
    """Read both files anew: finite weights, one graph, the trained kernels, and every mask where it belongs."""
    dense = parse_graph(dense_bytes, name=DENSE_NAME)
    sparse = parse_graph(sparse_bytes, name=SPARSE_NAME)
    _require_finite(dense)
    _require_finite(sparse)
    differences = structural_differences(dense, sparse)
    if differences:
        raise ArtifactError(
            f"the dense and the sparse ONNX graph differ in more than values ({_some(differences)}); nothing was written: "
            "batch-norm statistics that make a bias exactly zero in one of them do this, run 'masksparse learn' again without "
            "mask.batch_norm"
        )
    conformity = check_conformity(sparse, masks)
    findings = list(conformity.findings)
    foreign = {
        **dict.fromkeys(foreign_kernels(dense, trained)),
        **dict.fromkeys(foreign_kernels(sparse, _masked(trained, masks))),
    }
    findings += [f"constant {name} is not the trained weight of that name" for name in foreign]
    if not masks.statistics:
        findings += [f"constant {name} changed" for name in changed_constants(dense, sparse) if name not in masks.layers]
        findings += [f"kept weights of {name} changed" for name in changed_kept_weights(dense, sparse, masks)]
    if findings:
        raise ArtifactError(
            f"the sparse ONNX graph does not conform to its masks ({_some(findings)}); nothing was written: the export of this "
            "network rewrites the weights of a masked layer, exclude that layer with mask.exclude"
        )
    return conformity.layers


def _some(findings: Sequence[str]) -> str:
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    return "; ".join(findings[:3]) + more


def _require_finite(graph: Graph) -> None:
    for name, array in graph.constants.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise UsageError(
                f"constant {name} of the exported graph holds {count} values that are not finite (NaN or infinity); "
                "check the trained weights and batch-norm statistics"
            )
