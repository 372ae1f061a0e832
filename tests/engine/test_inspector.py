import json
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.inspector import count_sparse, parse_inspector

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ALL_FILES = sorted(GOLDEN.glob("inspector-*.json"))
SYNTHETIC = sorted(GOLDEN.glob("inspector-*-synthetic.json"))


def one_layer(**fields: Any) -> str:
    return json.dumps({"Layers": [{"Name": "conv", **fields}], "Bindings": []})


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.stem)
def test_every_recorded_file_is_read(path: Path) -> None:
    layers = parse_inspector(path.read_text(encoding="utf-8"))
    assert layers
    assert all(layer.reason for layer in layers)


@pytest.mark.parametrize("path", SYNTHETIC, ids=lambda path: path.stem)
def test_only_the_tactic_proves_sparse_math(path: Path) -> None:
    layers = parse_inspector(path.read_text(encoding="utf-8"))
    assert [layer.is_sparse for layer in layers] == [True, False, False, None]
    assert layers[0].onnx_nodes == ("layer1.conv1", "layer1.relu1")
    assert "allow a sparse tactic" in layers[1].reason
    assert "names no tactic" in layers[3].reason
    assert count_sparse(layers) == "sparse tactics in 1 of 4 layers; 1 layers name no tactic"


def test_there_is_a_file_for_each_version() -> None:
    assert {path.name.split("-")[1].partition(".")[0] for path in ALL_FILES} >= {"8", "10", "11"}


@pytest.mark.parametrize("tactic", ["sm80_xmma_fprop_sparse_conv_x", "cutlass_SPTENSOR16x8x32", "sm80_spmma_x"])
def test_names_of_sparse_tactics(tactic: str) -> None:
    assert parse_inspector(one_layer(TacticName=tactic))[0].is_sparse is True


def test_sparse_weights_with_a_dense_tactic_are_not_sparse_math() -> None:
    (layer,) = parse_inspector(one_layer(TacticName="sm80_xmma_fprop_dense", HasSparseWeights=1))
    assert layer.is_sparse is False
    assert count_sparse((layer,)) == "no sparse tactic in any of 1 layers"


def test_node_names_with_brackets_and_without_metadata() -> None:
    (layer,) = parse_inspector(one_layer(Metadata="[ONNX Layer: /stage[0]/conv]\x1e[ONNX Layer: relu]\x1e[ONNX Layer: relu]"))
    assert layer.onnx_nodes == ("/stage[0]/conv", "relu")
    assert parse_inspector(one_layer())[0].onnx_nodes == ()


def test_separators_may_stand_unescaped() -> None:
    text = one_layer(Metadata="[ONNX Layer: conv]|[ONNX Layer: relu]").replace("|", "\x1e")
    assert parse_inspector(text)[0].onnx_nodes == ("conv", "relu")


def test_bare_names_say_that_the_verbosity_is_missing() -> None:
    (layer,) = parse_inspector('{"Layers": ["conv"], "I/O Tensors": []}')
    assert layer.is_sparse is None
    assert "verbosity" in layer.reason


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": []}', '{"Bindings": []}', '{"Layers": 3, "Bindings": []}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="engine inspector"):
        parse_inspector(text)


def test_what_is_not_json_is_shown() -> None:
    with pytest.raises(ArtifactError, match=r"is not JSON \(.*, in '.*\"Alpha\": nan.*'\)"):
        parse_inspector(one_layer(Alpha=1).replace('"Alpha": 1', '"Alpha": nan'))


def test_a_layer_without_a_name_is_refused() -> None:
    with pytest.raises(ArtifactError, match="without a name"):
        parse_inspector('{"Layers": [{"TacticName": "x"}], "Bindings": []}')


def quoted(name: str) -> dict[str, EngineLayer]:
    text = (GOLDEN / f"inspector-{name}.json").read_text(encoding="utf-8")
    return {layer.name: layer for layer in parse_inspector(text)}


def test_quoted_int8_layers_of_a_resnet() -> None:
    first, strided, sparse = quoted("10.1-issue-4020").values()
    assert [layer.is_sparse for layer in (first, strided, sparse)] == [None, False, True]
    assert all(layer.has_sparse_weights for layer in (first, strided, sparse))
    assert sparse.onnx_nodes == ("resnetv15_stage3_conv4_fwd", "resnetv15_stage3_batchnorm4_fwd")
    assert (sparse.parameter_type, sparse.weight_dtype, sparse.weight_count) == ("Convolution", "Int8", 589824)
    assert (strided.tactic_value, strided.stream) == ("0x4749124f62d8bd23", 0)
    assert first.inputs == first.outputs == ("Thirty-two wide channel vectorized row major Int8 format",)


def test_quoted_layers_with_dynamic_shapes_and_without_metadata() -> None:
    *_, convolution = quoted("8-quoted").values()
    assert (convolution.is_sparse, convolution.has_sparse_weights, convolution.onnx_nodes) == (False, False, ())
    assert (convolution.layer_type, convolution.inputs, convolution.stream) == ("CaskConvolution", ("",), None)


def test_layers_of_myelin_keep_weights_among_constants_and_may_name_no_kernel() -> None:
    layers = quoted("rtx-1.7.1-listing")
    layer = layers["a_myl0_3"]
    assert layer.onnx_nodes == ("a", "a.relu")
    assert (layer.layer_type, layer.parameter_type, layer.has_sparse_weights) == ("correlation", "", None)
    assert (layer.weight_dtype, layer.weight_count) == ("Half", 8 * 8 * 3 * 3)
    assert layer.outputs == ("Half, (NHWC) Channel major format",)
    assert (layer.is_sparse, layer.reason) == (None, "the inspector names a placeholder, not the kernel")
    assert layers["__myl_Tran_myl0_7"].weight_count is None
