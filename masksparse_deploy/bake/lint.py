"""What is sparse in any ONNX file, what could be, and why the rest never will."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from masksparse_deploy.bake.finding import Finding, dtype_of
from masksparse_deploy.bake.inspect_layer import inspect_layer
from masksparse_deploy.bake.lint_positions import inspect_positions
from masksparse_deploy.bake.work import mac_count
from masksparse_deploy.core.artifacts.baking import LintLayer, LintReport
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.layers import PRODUCTS, Scope
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places
from masksparse_deploy.graph.positions import is_positions_node
from masksparse_deploy.graph.reader import read_graph

__all__ = ["lint", "lint_graph"]

# Operators with weights that are not looked into: position of the weight among the inputs, and why.
_UNREAD = {
    "ConvInteger": (1, "quantized operator: not read, only DequantizeLinear before a Conv is"),
    "QLinearConv": (3, "quantized operator: not read, only DequantizeLinear before a Conv is"),
    "MatMulInteger": (1, "quantized operator: not read, only DequantizeLinear before a MatMul is"),
    "QLinearMatMul": (3, "quantized operator: not read, only DequantizeLinear before a MatMul is"),
    "DeformConv": (1, "deformable convolution: no sparse kernels"),
    "GRU": (1, "recurrent operator: not read"),
    "LSTM": (1, "recurrent operator: not read"),
    "RNN": (1, "recurrent operator: not read"),
}
# What is to be known of all layers of a type.
_REMARKS = {
    "float32": "FP32: sparse kernels multiply FP16 or INT8; bake with a lower precision",
    "bfloat16": "BF16: no sparse convolution kernels were seen for it; FP16 and INT8 have them",
    "uint8": "UINT8: TensorRT takes symmetric INT8 weights only",
}


def lint(path: Path, *, transposable: bool = False) -> LintReport:
    """Look at every layer with weights of an ONNX file, one of ours or not.

    Args:
        path: the file.
        transposable: demand that every sparse layer is N:M along its output channels too, whatever it is annotated with.

    Raises:
        UsageError: there is no such file, or it stores tensors as sparse ones.
        ArtifactError: damaged, annotated under another schema version, or with weights that lie where they must not.
    """
    return lint_graph(read_graph(path), name=str(path), transposable=transposable)


def lint_graph(graph: Graph, *, name: str, transposable: bool = False) -> LintReport:
    """The same for a graph that was read already; `name` is used in messages."""
    schema = graph.metadata.get(keys.SCHEMA_VERSION, keys.SCHEMA)
    if schema != keys.SCHEMA:
        raise ArtifactError(
            f"{name} is annotated under schema version {schema}; this version reads {keys.SCHEMA}: use the version of "
            "masksparse that baked it"
        )
    scope = Scope(graph)
    rows = list(_rows(scope, _other_readers(scope)))
    counts = [row.mac_count for row, _ in rows if row.mac_count is not None]
    total = sum(counts)
    known = total > 0 and len(counts) == len(rows)
    layers = tuple(
        row.model_copy(update={"mac_share": row.mac_count / total}) if row.mac_count is not None and total else row
        for row, _ in rows
    )
    positions = tuple(inspect_positions(scope, layers))
    computed = {row.convolution: row.kept_count / row.position_count for row in positions if row.state == "conforming"}
    saved_count = sum(
        row.mac_count
        * (1 - computed.get("" if row.where else row.node, 1.0) * (1.0 if found is None else found.computed_share))
        for row, found in rows
        if row.mac_count is not None
    )
    findings = tuple(_findings(scope, layers))
    if transposable:
        findings += tuple(_not_transposable(rows))
    return LintReport(
        file_sha256=graph.sha256,
        layers=layers,
        positions=positions,
        findings=findings,
        remarks=tuple(_remarks(scope, rows)),
        ok=not findings and "broken claim" not in [row.state for row in layers] + [row.state for row in positions],
        amdahl_limit=total / (total - saved_count) if known else None,
    )


def _rows(scope: Scope, readers: Mapping[int, tuple[str, ...]]) -> Iterator[tuple[LintLayer, Finding | None]]:
    """Every layer with what was found, None where it is not read, in graph order, those of bodies after their operator."""
    for node in scope.graph.nodes:
        layer = scope.layer(node)
        if layer is not None:
            finding = inspect_layer(
                layer,
                node_notes=_ours(node.metadata),
                weight_notes=_ours(layer.stored_metadata),
                other_readers=readers.get(id(layer.stored), ()),
            )
            yield _read_row(scope, layer, finding), finding
        else:
            unread = _unread_weight(scope, node)
            if unread is not None:
                yield _unread_row(scope, node, *unread), None
    for _, body in scope.bodies:
        yield from _rows(body, readers)


def _read_row(scope: Scope, layer: WeightedLayer, finding: Finding) -> LintLayer:
    return LintLayer(
        node=layer.node.name,
        op=layer.node.op,
        where=scope.where,
        weight=layer.stored_name,
        route=layer.route,
        dtype=dtype_of(layer),
        shape=layer.weight.shape,
        state=finding.state,
        why=finding.why,
        drift=finding.drift,
        density=finding.density,
        group_count=finding.group_count,
        violation_count=finding.violation_count,
        transposable=None if finding.crosswise is None else not finding.crosswise,
        mac_count=None if scope.where else mac_count(scope.graph, layer.node, layer.weight.shape),
        mac_share=None,
    )


def _unread_weight(scope: Scope, node: Node) -> tuple[str, str] | None:
    """Name of the weight of an operator that is not looked into, and why it is not; None for one that has no weight."""
    fixed = scope.origins.is_fixed
    if node.domain:
        name = next((name for name in node.inputs if _is_matrix(scope, name)), None)
        return None if name is None else (name, f"operator of the domain {node.domain}: not read")
    if node.op in _UNREAD:
        position, why = _UNREAD[node.op]
        return (node.inputs[position], why) if len(node.inputs) > position else None
    if node.op == "Einsum":
        name = next((name for name in node.inputs if fixed(name)), None)
        return None if name is None else (name, "Einsum: not read")
    if node.op not in PRODUCTS or len(node.inputs) < 2:
        return None
    first, second = node.inputs[:2]
    if node.op in ("Conv", "ConvTranspose") or (fixed(second) and not fixed(first)):
        return second, "the weight is computed while the network runs: not read"
    if fixed(first) and not fixed(second):
        return first, "the weight is the first factor: only second factors are read"
    return None


def _unread_row(scope: Scope, node: Node, weight_name: str, why: str) -> LintLayer:
    origin = scope.origins.find(weight_name)
    weight = origin.stored if origin is not None else None
    shape = weight.shape if weight is not None else scope.graph.shapes.get(weight_name, ())
    known = tuple(length for length in shape if length is not None)
    known = known if len(known) == len(shape) else ()
    claimed = keys.PATTERN in node.metadata or (origin is not None and keys.PATTERN in origin.metadata)
    # The shape of a first factor does not tell how often its weights are used.
    tells = not scope.where and weight_name != node.inputs[0]
    return LintLayer(
        node=node.name,
        op=node.op,
        where=scope.where,
        weight=origin.name if origin is not None else weight_name,
        route=origin.route if origin is not None else (),
        dtype="",
        shape=known,
        state="broken claim" if claimed else "not eligible",
        why=f"annotated, but {why}" if claimed else why,
        drift=(),
        density=float(np.count_nonzero(nonzero_places(weight)) / max(weight.size, 1)) if weight is not None else 1.0,
        group_count=0,
        violation_count=0,
        mac_count=mac_count(scope.graph, node, known) if tells else None,
        mac_share=None,
    )


def _findings(scope: Scope, layers: tuple[LintLayer, ...]) -> Iterator[str]:
    """What the file says as a whole against what its layers are."""
    role = scope.graph.metadata.get(keys.ROLE)
    nodes, noted = _annotated(scope)
    masking = [node.name for inner in scope.walk() for node in inner.graph.nodes if is_positions_node(node)]
    if role == keys.ROLE_SPARSE and not (nodes or noted or masking or any(layer.state == "conforming" for layer in layers)):
        yield f"the file says {keys.ROLE} {role}, but no layer is annotated with a pattern, or has one"
    if role == keys.ROLE_DENSE and masking:
        yield f"the file says {keys.ROLE} {role}, but {masking[0]} is annotated with masked positions"
    if role == keys.ROLE_DENSE and (nodes or noted):
        yield f"the file says {keys.ROLE} {role}, but {(nodes or noted)[0]} is annotated with a pattern"
    listed_nodes = {layer.node for layer in layers}
    listed_weights = {layer.weight for layer in layers}
    for name in nodes:
        if name not in listed_nodes:
            yield f"node {name} is annotated with a pattern, but has no weight"
    for name in noted:
        if name not in listed_weights:
            yield f"{name} is annotated with a pattern, but no layer multiplies by it (moved by a later tool?)"


def _not_transposable(rows: Sequence[tuple[LintLayer, Finding | None]]) -> Iterator[str]:
    """Which sparse layers are N:M along their input channels only, for a user who needs them to be transposable."""
    sparse = [(row, found) for row, found in rows if found is not None and found.crosswise is not None]
    if not sparse:
        yield "no layer conforms to a pattern, so none is transposable"
    for row, found in sparse:
        if found.crosswise:
            yield f"{row.weight} is not transposable: {found.crosswise}"


def _remarks(scope: Scope, rows: Sequence[tuple[LintLayer, Finding | None]]) -> Iterator[str]:
    masks_positions = any(is_positions_node(node) for node in scope.graph.nodes)
    if scope.graph.metadata.get(keys.ROLE) == keys.ROLE_SPARSE and not masks_positions and not any(_annotated(scope)):
        yield "the file was baked, but its layers have lost their annotations (dropped by a later tool?)"
    if scope.graph.metadata.get(keys.ROLE) == keys.ROLE_REWRITTEN:
        yield "the file was rewritten: 'masksparse validate' holds it against the sparse file; its own layers claim nothing"
    # what there is no sparse kernel for does not matter to 1xN layers, which need none
    candidates = (row for row, found in rows if found is not None and not isinstance(found.pattern, BlockPattern))
    counts = Counter(row.dtype for row in candidates if row.state in ("conforming", "eligible", "wrong axis"))
    for dtype, text in _REMARKS.items():
        if counts[dtype]:
            yield f"{counts[dtype]} layer{'s' if counts[dtype] > 1 else ''} in {text}"


def _annotated(scope: Scope) -> tuple[list[str], list[str]]:
    """Names of the nodes and of the initializers that claim a pattern."""
    graphs = [inner.graph for inner in scope.walk()]
    nodes = [node.name for graph in graphs for node in graph.nodes if keys.PATTERN in node.metadata]
    return nodes, [name for graph in graphs for name, notes in graph.constant_metadata.items() if keys.PATTERN in notes]


def _is_matrix(scope: Scope, name: str) -> bool:
    origin = scope.origins.find(name)
    return origin is not None and origin.stored.ndim > 1


def _ours(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith(keys.PREFIX)}


def _other_readers(scope: Scope) -> Mapping[int, tuple[str, ...]]:
    """For each constant, by identity, the operators that read it as something else than the weight of a product."""
    readers: dict[int, list[str]] = {}
    for inner in scope.walk():
        for node in inner.graph.nodes:
            if node.outputs and inner.origins.find(node.outputs[0]) is not None:
                continue
            for position, name in enumerate(node.inputs):
                origin = inner.origins.find(name)
                if origin is not None and not (node.domain == "" and node.op in PRODUCTS and position == 1):
                    readers.setdefault(id(origin.stored), []).append(f"{node.op} {node.name}")
    return {key: tuple(found) for key, found in readers.items()}
