"""Which layers could be rewritten, and the reasons of those that cannot."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.annotations import PATTERN, POSITIONS
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.rewrite.forms import forms_of, gathered_positions
from masksparse_deploy.rewrite.sites import Site, find_sites
from tests.rewrite.models import Array, blocked_weight, conv, layer_constants, model_of, residual_blocks

HALF = BlockPattern(n=4, rate=0.5)
WEIGHT = blocked_weight((8, 4, 3, 3), HALF, seed=3)


def sites(model: onnx.ModelProto) -> dict[str, Site]:
    graph = parse_graph(model.SerializeToString(), name="sparse")
    return {site.name: site for site in find_sites(graph)}


def one_layer(weight: Array = WEIGHT, pattern: BlockPattern | str | None = HALF, **attributes: Any) -> onnx.ModelProto:
    patterns = {} if pattern is None else {"a": pattern}
    return model_of([conv("a", "x", "y", **attributes)], layer_constants("a", weight), patterns)


def test_annotated_layers_are_found_with_their_density() -> None:
    found = sites(residual_blocks(BlockPattern(n=4, rate=0.75)))
    assert list(found) == ["conv1", "conv2", "conv3"]
    assert {(site.pattern, site.n, site.density, site.obstacle) for site in found.values()} == {("1x4@0.75", 4, 0.25, "")}


def test_blocks_are_found_without_annotation() -> None:
    (site,) = sites(one_layer(pattern=None)).values()
    assert (site.n, site.pattern) == (4, "1x4")


def test_dense_layers_and_other_patterns_are_none() -> None:
    assert sites(one_layer(np.ones((8, 4, 3, 3), np.float32), None)) == {}
    assert sites(one_layer(WEIGHT, "2:4")) == {}


def shared() -> onnx.ModelProto:
    nodes = [conv("a", "x", "b"), conv("a", "b", "c")]
    nodes[1].name = "again"
    weight = blocked_weight((4, 4, 3, 3), HALF)
    nodes.append(helper.make_node("Relu", ["c"], ["y"], name="relu"))
    return model_of(nodes, layer_constants("a", weight), {"a": HALF})


def grouped() -> onnx.ModelProto:
    return one_layer(blocked_weight((8, 2, 3, 3), HALF), HALF, group=2)


def depthwise() -> onnx.ModelProto:
    weight = np.ones((4, 1, 3, 3), np.float32)
    weight[:2] = 0
    return one_layer(weight, "1x2@0.5", group=4)


def quantized() -> onnx.ModelProto:
    integers = np.where(WEIGHT != 0, 3, 0).astype(np.int8)
    route = helper.make_node("DequantizeLinear", ["q", "scale"], ["a.weight"], name="dq")
    constants = {"q": integers, "scale": np.float32(0.5), "a.bias": np.zeros(8, np.float32)}
    model = model_of([route, conv("a", "x", "y")], constants, {})
    model.graph.node[1].metadata_props.add(key=PATTERN, value=str(HALF))
    return model


def cast() -> onnx.ModelProto:
    route = helper.make_node("Cast", ["half"], ["a.weight"], name="cast", to=TensorProto.FLOAT)
    constants = {"half": WEIGHT.astype(np.float16), "a.bias": np.zeros(8, np.float32)}
    model = model_of([route, conv("a", "x", "y")], constants, {})
    model.graph.node[1].metadata_props.add(key=PATTERN, value=str(HALF))
    return model


def linear() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((6, 8), dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "fc.weight"], ["y"], name="fc")
    return model_of([node], {"fc.weight": weight}, {"fc": HALF})


def branching() -> onnx.ModelProto:
    weights = layer_constants("a", WEIGHT)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inner = conv("a", "x", "inside")
    inner.metadata_props.add(key=PATTERN, value=str(HALF))
    output = [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)]
    then = helper.make_graph([inner], "then", [], output, initializers)
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["inside"])], "else", [], output)
    node = helper.make_node("If", ["yes"], ["y"], name="branch", then_branch=then, else_branch=other)
    return model_of([node], {"yes": np.array(True)}, {})


def same_names() -> onnx.ModelProto:
    model = residual_blocks(HALF)
    model.graph.node[0].name = "conv1"
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (same_names(), "another operator has the same name"),
        (shared(), "its weight is read 2 times, and would have to be stored again for each reader"),
        (grouped(), "it has groups already"),
        (depthwise(), "a depthwise convolution has no channels to leave out"),
        (quantized(), "its weight is quantized, and its groups would need scales of their own"),
        (cast(), "its weight passes through Cast first"),
        (linear(), "only two-dimensional convolutions are rewritten"),
        (branching(), "it lies in then_branch of If branch"),
    ],
)
def test_what_cannot_be_rewritten_says_why(model: onnx.ModelProto, reason: str) -> None:
    site = next(site for site in sites(model).values() if site.obstacle)
    assert site.obstacle == reason
    assert forms_of(site, 16) == ()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (
            "1x8@0.5",
            r"node a is annotated with the pattern 1x8@0\.5, but 1 of 1 groups hold weights in more blocks than it keeps",
        ),
        (
            "1x3@0.5",
            r"node a is annotated with the pattern 1x3@0\.5, but its 8 output channels are no multiple of 3; bake the masks",
        ),
        ("1x4@0.75", r"node a is annotated with the pattern 1x4@0\.75, but 2 of 2 groups"),
        ("1x4", r"node a: the annotation masksparse\.pattern is none: pattern '1x4' is not of the form"),
    ],
)
def test_annotations_that_do_not_hold_are_refused(pattern: str, words: str) -> None:
    weight = np.zeros((8, 4, 3, 3), np.float32)
    weight[:4, :2] = weight[4:, 1:3] = 1
    with pytest.raises(ArtifactError, match=words):
        sites(one_layer(weight, pattern))


def test_masked_positions_make_a_layer_sparse() -> None:
    keep = np.zeros((1, 1, 6, 6), np.bool_)
    keep[..., :3] = True
    where = helper.make_node("Where", ["keep", "b", "constant"], ["y"], name="where")
    constants = layer_constants("a", np.ones((8, 4, 3, 3), np.float32))
    constants |= {"keep": keep, "constant": constants["a.bias"].reshape(1, 8, 1, 1)}
    model = model_of([conv("a", "x", "b"), where], constants, {})
    model.graph.node[1].metadata_props.add(key=POSITIONS, value="0" * 64)
    (site,) = sites(model).values()
    assert (site.pattern, site.n, site.density) == ("positions", None, 0.5)


def test_variants_of_the_gathered_form() -> None:
    """Joined groups and channels filled up to the block, where they differ from the plain form and compute less than dense."""
    weight = blocked_weight((32, 32, 1, 1), BlockPattern(n=8, rate=0.75))
    model = model_of([conv("a", "x", "y", kernel_shape=[1, 1], pads=None)], layer_constants("a", weight), {}, channels=32)
    (site,) = sites(model).values()
    forms = forms_of(site, 8)
    assert [str(form) for form in forms] == ["gathered"]
    assert forms[0].computed_density == 0.25
    plain, filled, *joined = forms_of(site, 16)
    assert (plain.computed_density, filled.computed_density) == (0.25, 0.5)
    assert str(filled) == "gathered, 16 channels a group"
    assert [str(form) for form in joined] in ([], ["gathered, 16 channels a group, groups of 16"])


def test_large_layers_have_forms_in_parts() -> None:
    """Parts gather at most 1 or 2 MiB each; there are never more of them than groups."""
    weight = blocked_weight((64, 64, 1, 1), BlockPattern(n=8, rate=0.5))
    node = conv("a", "x", "y", kernel_shape=[1, 1], pads=None, strides=[2, 1])
    (site,) = sites(model_of([node], layer_constants("a", weight), {}, channels=64)).values()
    positions = gathered_positions(site, (64, 63, 64), batch=2)
    assert positions == 2 * 32 * 64
    # 8 groups of 32 channels at 4096 positions in float32 are 4 MiB
    assert [str(form) for form in forms_of(site, 8, positions)] == ["gathered, in 2 parts", "gathered, in 4 parts", "gathered"]
    assert [str(form) for form in forms_of(site, 8, 8 * positions)] == ["gathered"]
    assert [str(form) for form in forms_of(site, 8, positions // 8)] == ["gathered"]
    assert {form.computed_density for form in forms_of(site, 8, positions)} == {0.5}
