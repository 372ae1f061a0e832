"""Is a rewritten file the sparse file's function? Read from the two files; shares no code with the rewriting.

Every operator of the rewritten file must be an operator of the sparse file on the same constants, or one that selects what such
an operator reads, or the other form of a layer, maybe without output channels that nobody reads: the weights of the dense layer
are then put together again and must be the sparse file's, bit for bit.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Body, Graph, Node
from masksparse_deploy.rewrite.blocks.read_back import read_convolution, read_selection, read_subsampling
from masksparse_deploy.rewrite.blocks.read_parts import read_parts
from masksparse_deploy.rewrite.blocks.read_unread import read_channelwise, read_fewer_outputs
from masksparse_deploy.rewrite.rows.verify import RowsReader
from masksparse_deploy.rewrite.trace import Held, Trace, same_array, same_attributes

__all__ = ["differences", "row_images"]

# Each reads an operator of the rewritten file that is not simply the sparse file's, and returns whether it knows it.
_READERS = (read_selection, read_subsampling, read_convolution, read_fewer_outputs, read_parts, read_channelwise)


def differences(sparse: Graph, rewritten: Graph) -> tuple[str, ...]:
    """In what the rewritten file computes something else than the sparse one, in words; empty if it is the same function.

    The same function in real arithmetic: sums may be taken in another order, and what is left out are products with zeros.
    Names of the sparse file's tensors mean the same in both files; annotations are not compared.
    """
    trace, rows = _followed(sparse, rewritten)
    computed = {name for node in rewritten.nodes for name in node.outputs} | rows.covered
    # of what is read as a whole, some channels are not enough
    computed |= trace.partial - {*sparse.outputs} - {name for body in sparse.bodies for name in _reads(body.graph)}
    missing = [node for node in _read_nodes(sparse) if not computed.issuperset(filter(None, node.outputs))]
    trace.findings += [f"{_called(node)} of the sparse file is missing" for node in missing]
    trace.findings += [f"{name} is computed, but nothing reads it" for name, is_read in trace.helpers.items() if not is_read]
    trace.findings += _body_findings(sparse.bodies, rewritten.bodies)
    trace.findings += _named_constants_findings(sparse, rewritten)
    return tuple(trace.findings)


def row_images(sparse: Graph, rewritten: Graph, names: Iterable[str]) -> Mapping[str, tuple[str, npt.NDArray[np.int64]]]:
    """Where tensors of the sparse file are that the rewritten one holds as rows (batch, rows, channels).

    Args:
        sparse: the sparse file.
        rewritten: a file in which `differences` finds none.
        names: tensors of images of the sparse file.

    Returns:
        name -> the tensor of rows, and the row of each position, int64 (height, width); without those that are in no rows.
    """
    _, rows = _followed(sparse, rewritten)
    found = {name: rows.image(name) for name in names}
    return {name: place for name, place in found.items() if place is not None}


def _followed(sparse: Graph, rewritten: Graph) -> tuple[Trace, RowsReader]:
    """Read the operators of the rewritten file in their order."""
    trace = Trace(sparse, rewritten)
    for what in ("inputs", "outputs", "opsets"):
        expected, found = getattr(sparse, what), getattr(rewritten, what)
        if expected != found:
            trace.findings.append(f"the {what} are {found}, in the sparse file {expected}")
    rows = RowsReader(trace)
    readers = (*_READERS, rows.read)
    for node in rewritten.nodes:
        is_known = _same_operator(trace, node) or (node.inputs and any(reader(trace, node) for reader in readers))
        if not is_known:
            trace.findings.append(_unknown(trace, node))
        for name in node.outputs:  # what is wrong is told once, not again for all that reads it
            trace.held.setdefault(name, Held(name))
    return trace, rows


def _same_operator(trace: Trace, node: Node) -> bool:
    """Whether the sparse file has this operator, on the same tensors and constants."""
    twin = trace.twin(node)
    if twin is None or (node.op, node.domain, node.outputs) != (twin.op, twin.domain, twin.outputs):
        return False
    if len(node.inputs) != len(twin.inputs) or not same_attributes(node.attributes, twin.attributes):
        return False
    return all(_same_input(trace, found, name) for found, name in zip(node.inputs, twin.inputs, strict=True))


def _same_input(trace: Trace, found: str, name: str) -> bool:
    expected, constant = trace.sparse.constants.get(name), trace.constant(found)
    if expected is not None or constant is not None:
        return expected is not None and constant is not None and same_array(expected, constant)
    held = trace.held.get(found)
    return found == name == "" or (held is not None and held.tensor == name and held.is_whole)


def _unknown(trace: Trace, node: Node) -> str:
    twin = trace.twin(node)
    if twin is None:
        return f"{_called(node)} is not in the sparse file, and is no known part of a rewritten layer"
    return f"{_called(node)} is not {_called(twin)} of the sparse file: it has other attributes, inputs or constants"


def _called(node: Node) -> str:
    return f"{node.op} {node.name}"


def _body_findings(sparse: tuple[Body, ...], rewritten: tuple[Body, ...]) -> list[str]:
    """Differences in the weights of bodies; their operators are attributes, which are compared with the nodes."""
    if [(body.node.name, body.attribute) for body in sparse] != [(body.node.name, body.attribute) for body in rewritten]:
        return ["the files have other bodies of If, Loop or Scan"]
    findings = []
    for one, other in zip(sparse, rewritten, strict=True):
        where = f"in {one.attribute} of {_called(one.node)}"
        expected, found = one.graph.constants, other.graph.constants
        if expected.keys() != found.keys() or not all(same_array(array, found[name]) for name, array in expected.items()):
            findings.append(f"{where} are other constants")
        findings += _body_findings(one.graph.bodies, other.graph.bodies)
    return findings


def _named_constants_findings(sparse: Graph, rewritten: Graph) -> list[str]:
    """Constants that are outputs, or that bodies read by their names in the graph around them."""
    names = {name for body in sparse.bodies for name in _reads(body.graph)} | {*sparse.outputs}
    wrong = (name for name in sorted(names) if not _same_constant(sparse, rewritten, name))
    return [f"{name}, an output or what a body reads, is not the sparse file's constant" for name in wrong]


def _same_constant(sparse: Graph, rewritten: Graph, name: str) -> bool:
    """Whether a name stands for the same constant in both files, or for none in both."""
    expected, found = sparse.constants.get(name), rewritten.constants.get(name)
    if expected is None or found is None:
        return expected is found
    return same_array(expected, found)


def _read_nodes(graph: Graph) -> list[Node]:
    """The operators that the outputs are made of, in graph order."""
    bodies: dict[str, set[str]] = {}
    for body in graph.bodies:
        bodies.setdefault(body.node.name, set()).update(_reads(body.graph))
    read, found = {*graph.outputs}, []
    for node in reversed(graph.nodes):
        if not read.isdisjoint(filter(None, node.outputs)):
            found.append(node)
            read.update(node.inputs, bodies.get(node.name, ()))
    return found[::-1]


def _reads(graph: Graph) -> set[str]:
    own = {name for node in graph.nodes for name in node.inputs} | {*graph.outputs}
    return own.union(*(_reads(body.graph) for body in graph.bodies))
