"""What the bake stage checks of the files it is about to write, from their bytes: one graph, the trained kernels, the masks."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.fidelity import changed_kept_weights, foreign_kernels
from masksparse_deploy.bake.position_check import check_positions
from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.artifacts.baking import BakedLayer, BakedPositions
from masksparse_deploy.core.artifacts.survival import Checkpoint
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.positions import without_positions

__all__ = ["masked", "verify_converted", "verify_export", "verify_positions", "with_checkpoints"]

Array = npt.NDArray[np.float32]


def verify_positions(sparse: Graph, masks: MaskSet) -> tuple[Graph, tuple[BakedPositions, ...]]:
    """Check that a sparse graph masks the positions that its mask set says, and hold the rest against the dense twin.

    Returns:
        The graph with every position computed, which must be the dense twin but for weights, and what was found of the masks.

    Raises:
        ArtifactError: a mask is missing or another one, or dropped positions hold something else than the bias.
    """
    check = check_positions(sparse, masks.positions)
    if check.findings:
        raise ArtifactError(
            f"the sparse ONNX graph does not conform to its position masks ({_some(check.findings)}); nothing was written: "
            "report this, and leave the layer out with mask.exclude until then"
        )
    return without_positions(sparse), check.layers


def verify_export(
    dense: Graph, sparse: Graph, masks: MaskSet, trained: Mapping[str, Array], new: Mapping[str, Array] | None = None
) -> tuple[BakedLayer, ...]:
    """Check the FP32 graphs: finite weights, one structure, the trained kernels, and every mask where it belongs.

    Args:
        dense: the dense twin.
        sparse: the same with the masks in it.
        masks: in the axes of the stored constants.
        trained: parameter name -> weight as trained, in the same axes.
        new: the weights of the sparse file where the masks came with new ones, likewise.

    Raises:
        UsageError: a constant is NaN or infinite.
        ArtifactError: anything else is wrong.
    """
    _require_finite(dense)
    _require_finite(sparse)
    _require_one_graph(dense, sparse)
    conformity = check_conformity(sparse, masks)
    findings = list(conformity.findings)
    foreign = {
        **dict.fromkeys(foreign_kernels(dense, trained)),
        **dict.fromkeys(foreign_kernels(sparse, masked(trained if new is None else new, masks))),
    }
    findings += [f"constant {name} is not the trained weight of that name" for name in foreign]
    if _differ_in_masks_only(masks):
        findings += _changed(dense, sparse, masks)
    if findings:
        raise ArtifactError(
            f"the sparse ONNX graph does not conform to its masks ({_some(findings)}); nothing was written: the export of this "
            "network rewrites the weights of a masked layer, exclude that layer with mask.exclude"
        )
    return conformity.layers


def verify_converted(dense: Graph, sparse: Graph, masks: MaskSet, precision: str) -> tuple[BakedLayer, ...]:
    """Check the graphs after conversion: finite weights, one structure, and every mask still where it belongs.

    Where both went through the same rounding, which is not so in INT8 with its scales from each file's own activations, they
    must still differ in nothing but what the masks drop.

    Raises:
        ArtifactError: conforming until then, something is wrong now.
    """
    _require_one_graph(dense, sparse)
    conformity = check_conformity(sparse, masks)
    findings = list(conformity.findings)
    for graph in (dense, sparse):
        findings += [f"constant {name} holds values that are not finite" for name, _ in _not_finite(graph)]
    if not findings and precision != "int8" and _differ_in_masks_only(masks):
        findings += _changed(dense, sparse, masks)
    if findings:
        raise ArtifactError(
            "the ONNX graph conformed to its masks when it was exported, and no longer does after the conversion to "
            f"{precision} ({_some(findings)}); nothing was written: bake in fp32, and report this"
        )
    return conformity.layers


def with_checkpoints(
    exported: Iterable[BakedLayer], converted: Iterable[BakedLayer], masks: MaskSet, weights: Mapping[str, Array]
) -> tuple[BakedLayer, ...]:
    """The layers of the written file, with what was counted in the module of these `weights`, the export and the file."""
    before = {layer.node: layer for layer in exported}
    in_modules = masked(weights, masks)
    layers = []
    for layer in converted:
        mask = masks.layers[layer.weight_name]
        in_module = mask.pattern.count_violations(in_modules[layer.weight_name] != 0, group_axis=mask.group_axis)
        exported_layer = before[layer.node]
        checkpoints = (
            Checkpoint(stage="module", violation_count=in_module, group_count=layer.group_count),
            Checkpoint(stage="onnx", violation_count=exported_layer.violation_count, group_count=exported_layer.group_count),
            Checkpoint(stage="converted", violation_count=layer.violation_count, group_count=layer.group_count),
        )
        layers.append(layer.model_copy(update={"checkpoints": checkpoints}))
    return tuple(layers)


def _differ_in_masks_only(masks: MaskSet) -> bool:
    """Whether the files came from one export, so that nothing else may differ."""
    return not masks.statistics and not masks.weights


def masked(weights: Mapping[str, Array], masks: MaskSet) -> dict[str, Array]:
    """The weights with zeros where their masks drop them."""
    return {name: np.where(mask.keep, weights[name], np.float32(0)) for name, mask in masks.layers.items()}


def _require_one_graph(dense: Graph, sparse: Graph) -> None:
    differences = structural_differences(dense, sparse)
    if differences:
        raise ArtifactError(
            f"the dense and the sparse ONNX graph differ in more than values ({_some(differences)}); nothing was written: "
            "batch-norm statistics that make a bias exactly zero in one of them do this, run 'masksparse learn' again without "
            "mask.batch_norm"
        )


def _changed(dense: Graph, sparse: Graph, masks: MaskSet) -> list[str]:
    """In what the two differ though no mask says so."""
    others = [f"constant {name} changed" for name in changed_constants(dense, sparse) if name not in masks.layers]
    return others + [f"kept weights of {name} changed" for name in changed_kept_weights(dense, sparse, masks)]


def _require_finite(graph: Graph) -> None:
    for name, count in _not_finite(graph):
        raise UsageError(
            f"constant {name} of the exported graph holds {count} values that are not finite (NaN or infinity); "
            "check the trained weights and batch-norm statistics"
        )


def _not_finite(graph: Graph) -> Iterable[tuple[str, int]]:
    for name, array in graph.constants.items():
        # The types of ml_dtypes, such as bfloat16, are of no kind that NumPy knows
        if array.dtype.kind in "fV" and not np.isfinite(array).all():
            yield name, int((~np.isfinite(array)).sum())


def _some(findings: Sequence[str]) -> str:
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    return "; ".join(findings[:3]) + more
