"""Convolutions in the form of rows: a Gather of the rows that windows read, and matrix products for the positions computed.

Grimaldi et al. 2023 leave out columns of im2col; here in standard operators, on activations (batch, positions, channels). What
lies between two such convolutions stays in rows, so that lists of rows are composed beforehand and nothing is scattered;
everything else reads images as before, under the names they had.
"""

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.rewrite.rows.builder import RowBuilder
from masksparse_deploy.rewrite.rows.convolution import add_convolution
from masksparse_deploy.rewrite.rows.elementwise import add_elementwise, is_elementwise, row_inputs
from masksparse_deploy.rewrite.rows.find import is_masked, obstacle, read_convolution
from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from masksparse_deploy.rewrite.rows.tensor import RowTensor, from_images, to_images

__all__ = ["transform"]


def transform(model: ir.Model, layers: Mapping[str, GroupCosts]) -> None:
    """Bring convolutions into the form of rows, in place; names of tensors that stay (batch, channels, height, width) stay.

    A convolution of 1x1 between two of them, as in a shortcut, is brought there too, so that its neighbours stay in rows.

    Args:
        model: the sparse file.
        layers: names of Conv nodes of the main graph, masked or not, and what operators cost, for the choice of their groups.

    Raises:
        ArtifactError: a layer cannot be brought into this form, as its height and width are not fixed.
    """
    graph = model.graph
    named = {node for node in graph if node.name in layers}
    _infer_shapes(model)
    for node in named:
        reason = obstacle(node, graph)
        if reason:
            raise ArtifactError(f"node {node.name} cannot compute rows: {reason}; leave it as it is, with rewrite.mode never")
    build = RowBuilder(model)
    convolutions = {node: read_convolution(node) for node in (*named, *_bridges(graph, named))}
    wheres = {found.where for found in convolutions.values() if found.where is not None}
    in_rows = _nodes_in_rows(graph, set(convolutions), wheres)
    known: dict[ir.Value, RowTensor] = {}

    def rows_of(value: ir.Value | None) -> RowTensor:
        assert value is not None, "convolutions and elementwise operators have their first inputs"
        if value not in known:
            known[value] = from_images(build, value)
        return known[value]

    for node in list(graph):
        if node not in in_rows or node in wheres:
            continue
        build.before = node
        if node in convolutions:
            relu = _only_relu(convolutions[node].output, in_rows)
            output = convolutions[node].output if relu is None else relu.outputs[0]
            costs = layers.get(node.name or "", GroupCosts())
            source = rows_of(node.inputs[0])
            known[output] = add_convolution(build, convolutions[node], source, costs, has_relu=relu is not None)
        else:
            output = node.outputs[0]
            if output not in known:
                known[output] = add_elementwise(build, node, [rows_of(value) for value in row_inputs(node)])
        _hand_over(graph, build, output, known[output], in_rows)
    for node in reversed([node for node in graph if node in in_rows]):
        graph.remove(node, safe=True)
    _drop_unread(graph)


def _infer_shapes(model: ir.Model) -> None:
    """Let tensors have their shapes, as far as the file can tell them."""
    stored = list(model.graph.initializers.values())
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    model.graph.initializers.clear()  # inference takes large ones out and puts them back at the end
    for value in stored:
        model.graph.initializers.add(value)


def _bridges(graph: ir.Graph, convolutions: set[ir.Node]) -> list[ir.Node]:
    """Convolutions of 1x1 that read what a convolution in rows reads, and of which a sum with rows is the only reader."""
    read = {node.inputs[0] for node in convolutions}
    behind = {node.outputs[0] for node in convolutions} | {
        use.node.outputs[0] for node in convolutions for use in node.outputs[0].uses() if use.node.op_type == "Where"
    }
    found = []
    for node in graph:
        if node in convolutions or obstacle(node, graph) or node.inputs[0] not in read or is_masked(node):
            continue
        readers = {use.node for use in node.outputs[0].uses()}
        is_point = read_convolution(node).kernel == (1, 1)
        if is_point and len(readers) == 1 and any(is_elementwise(reader) and behind & {*reader.inputs} for reader in readers):
            found.append(node)
    return found


def _nodes_in_rows(graph: ir.Graph, convolutions: set[ir.Node], wheres: set[ir.Node]) -> set[ir.Node]:
    """Convolutions, what masks them, and elementwise operators that read rows only, or that lead to a convolution in rows."""
    chosen = convolutions | wheres
    for node in graph:
        if node in chosen or not is_elementwise(node):
            continue
        read = [value.producer() in chosen for value in row_inputs(node)]
        if all(read) or (any(read) and _leads_to(node, convolutions)):
            chosen.add(node)
    return chosen


def _leads_to(node: ir.Node, convolutions: set[ir.Node]) -> bool:
    """Whether a convolution reads what `node` gives, at most elementwise operators between them."""
    pending, seen = [node], {node}
    while pending:
        readers = {use.node for use in pending.pop().outputs[0].uses()} - seen
        if readers & convolutions:
            return True
        seen |= readers
        pending += [reader for reader in readers if is_elementwise(reader)]
    return False


def _only_relu(value: ir.Value, in_rows: set[ir.Node]) -> ir.Node | None:
    """The Relu in rows that alone reads a tensor."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output():
        return None
    return readers[0] if readers[0] in in_rows and readers[0].op_type == "Relu" else None


def _hand_over(graph: ir.Graph, build: RowBuilder, value: ir.Value, rows: RowTensor, in_rows: set[ir.Node]) -> None:
    """Give images to whatever reads `value` and is not computed on rows, under its name."""
    readers = [use for use in value.uses() if use.node not in in_rows]
    if not readers and not value.is_graph_output():
        return
    images = to_images(build, rows, value.name or "rows")
    images.name, value.name = value.name, f"{value.name}.replaced"
    images.type, images.shape = value.type, value.shape
    for use in readers:
        use.node.replace_input_with(use.idx, images)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = images


def _drop_unread(graph: ir.Graph) -> None:
    """Remove constants that nobody reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
