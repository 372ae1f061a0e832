"""Two files that don't belong together are refused, and the first difference is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.certify.pairing import pair_graphs, read_pair
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.graph.annotations import ROLE, ROLE_DENSE, ROLE_SPARSE
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.graph.twins import masked_layers
from tests.certify.networks import as_pair
from tests.checker.test_forgeries import MASKED, with_body
from tests.models.make_onnx import MASKED_LAYERS, residual_pair


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (tensor,) = (entry for entry in model.graph.initializer if entry.name == name)
    return tensor


def set_stride(model: onnx.ModelProto) -> None:
    (node,) = (entry for entry in model.graph.node if entry.name == "layer2.shortcut")
    (attribute,) = (entry for entry in node.attribute if entry.name == "pads")
    attribute.ints[:] = [0, 0, 1, 1]


def swap_activation(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Tanh"


def rename_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "root"


def reshape_bias(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "fc.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((1, 10), dtype=np.float32), tensor.name))


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "scores"
    model.graph.node[-1].output[0] = "scores"


def rename_weight(model: onnx.ModelProto) -> None:
    initializer(model, "fc.bias").name = "bias"
    model.graph.node[-1].input[2] = "bias"


def add_node(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Identity", ["before"], ["logits"], name="end"))


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "attribute": (set_stride, r"node 'layer2.shortcut' \(Conv\) has pads \(0, 0, 0, 0\) and \(0, 0, 1, 1\)"),
    "operator": (swap_activation, r"node 'stem.relu' \(Relu\) has op 'Relu' and 'Tanh'"),
    "name": (rename_node, "node 'stem' .* has name 'stem' and 'root'"),
    "shape": (reshape_bias, r"'fc.bias' is float32 \(10,\) and float32 \(1, 10\)"),
    "input": (rename_input, "the inputs are .*images.* and .*pixels"),
    "output": (rename_output, "the outputs are logits and scores"),
    "weight": (rename_weight, "node 'fc' .* has inputs"),
    "node": (add_node, "node 'fc' .* has outputs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_difference_is_named(fault: str, tmp_path: Path) -> None:
    plant, message = FAULTS[fault]
    dense, sparse = residual_pair()
    plant(sparse)
    (tmp_path / "dense.onnx").write_bytes(dense.SerializeToString())
    (tmp_path / "sparse.onnx").write_bytes(sparse.SerializeToString())
    with pytest.raises(ArtifactError, match=f"dense.onnx and .*sparse.onnx do not belong together: {message}.*bake again"):
        read_pair(tmp_path / "dense.onnx", tmp_path / "sparse.onnx")


def test_a_weight_that_only_one_file_has() -> None:
    dense, sparse = residual_pair()
    sparse.graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.float32), "spare"))
    graphs = [parse_graph(model.SerializeToString(), name="model") for model in (dense, sparse)]
    with pytest.raises(ArtifactError, match="only the sparse file has the weight 'spare'"):
        pair_graphs(*graphs)


def test_twins_are_accepted_and_their_masked_layers_found() -> None:
    pair = as_pair(residual_pair())
    assert [dense.node.name for dense, _ in masked_layers(pair.dense, pair.sparse)] == list(MASKED_LAYERS)


def test_a_layer_that_is_annotated_counts_as_masked_even_if_its_weights_are_equal() -> None:
    _, sparse = residual_pair()
    pair = as_pair((sparse, sparse))
    assert [dense.node.name for dense, _ in masked_layers(pair.dense, pair.sparse)] == list(MASKED_LAYERS)


def test_a_weight_that_only_a_body_reads_must_be_the_same() -> None:
    """No layer bound covers it."""
    graphs = [parse_graph(model.SerializeToString(), name="model") for model in with_body(MASKED[:, :, 1:2, 1:2])]
    message = "'inner', which a body of an If, Loop or Scan reads, has different values, and no bound covers it"
    with pytest.raises(ArtifactError, match=message):
        pair_graphs(*graphs)


def test_files_in_each_others_place_are_told_by_their_annotations(tmp_path: Path) -> None:
    paths = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    for path, model, role in zip(paths, residual_pair(), (ROLE_DENSE, ROLE_SPARSE), strict=True):
        onnx.helper.set_model_props(model, {ROLE: role})
        path.write_bytes(model.SerializeToString())
    assert read_pair(*paths).dense.metadata[ROLE] == ROLE_DENSE
    message = r"sparse\.onnx says that it is the sparse file, and .*dense\.onnx the dense one; exchange the two paths"
    with pytest.raises(UsageError, match=message):
        read_pair(*reversed(paths))
    read_pair(paths[1], paths[1])  # an update is bounded against the sparse file of before
