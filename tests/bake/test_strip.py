"""What is taken out of files, and what is not."""

import onnx
import pytest

from masksparse_deploy.bake.strip import strip_all_notes, strip_annotations, strip_machine_notes
from tests.bake.file_models import branching_model, rich_model


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        ('File "/home/me/net.py", line 3', False),
        ("/usr/lib/python3.11/site-packages/torch/nn/modules/conv.py(458): _conv_forward", False),
        (r"C:\Users\me\net.py:3", False),
        (r"see \\server\share\net.py", False),
        ("~/models/net.pyc", False),
        ("from=/opt/net.py", False),
        ("net.py holds the model", True),
        ("models/net.py", True),
        ("3/4 of the layers; see net.pydantic", True),
        ("https://example.org/net.html", True),
        ("/home/me/weights.bin", True),
        ("a text\nof two lines", True),
    ],
)
def test_paths_to_sources(text: str, is_kept: bool) -> None:
    model = rich_model()
    model.graph.node[0].doc_string = text
    model.graph.node[0].metadata_props.add(key="note", value=text)
    strip_machine_notes(model)
    assert (model.graph.node[0].doc_string == text) is is_kept
    assert ("note" in {entry.key for entry in model.graph.node[0].metadata_props}) is is_kept


def notes_everywhere(model: onnx.ModelProto) -> list[onnx.NodeProto | onnx.GraphProto | onnx.TensorProto]:
    body = model.graph.node[-1].attribute[0].g
    return [model.graph, model.graph.node[0], body, body.node[0], body.initializer[0], body.output[0]]


@pytest.mark.parametrize("key", ["pkg.torch.onnx.stack_trace", "pkg.torch.export.graph", "pkg.onnxscript.rewriter.rule"])
def test_the_exporters_keys_go_wherever_they_are(key: str) -> None:
    model = branching_model(captured=False)
    for part in notes_everywhere(model):
        part.metadata_props.add(key=key, value="anything")
        part.metadata_props.add(key="pkg.own", value="the user's")
    strip_machine_notes(model)
    for part in notes_everywhere(model):
        assert [entry.key for entry in part.metadata_props] == ["pkg.own"]


def test_annotations_of_one_prefix_go() -> None:
    model = branching_model(captured=False)
    for part in notes_everywhere(model):
        part.metadata_props.add(key="masksparse.pattern", value="2:4")
        part.metadata_props.add(key="masksparser", value="the user's")
    strip_annotations(model, "masksparse.")
    for part in notes_everywhere(model):
        assert [entry.key for entry in part.metadata_props] == ["masksparser"]


def test_an_export_of_our_own_keeps_no_notes() -> None:
    model = rich_model()
    strip_all_notes(model)
    assert model.producer_version == "1.2"
    assert b"the user's conv" not in model.SerializeToString() and b"author" not in model.SerializeToString()
