"""Weights in other files: read from where they lie, and nowhere else."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import canonical_json, sha256_bytes, sha256_file
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from tests.bake.lint_models import one_layer, weights
from tests.models.make_onnx import residual_pair

WEIGHT = weights(16, 16, 3, 3)


def saved(folder: Path, *, content: bytes = WEIGHT.tobytes(), **entries: Any) -> Path:
    """A model whose weight "w" lies where `entries` say, by default in "w.bin" with that `content`."""
    model = one_layer("Conv", WEIGHT, x=["n", 16, 4, 4])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "w.bin").write_bytes(content)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        (WEIGHT.tobytes(), {}),
        (WEIGHT.tobytes(), {"offset": 0, "length": WEIGHT.nbytes}),
        (bytes(4096) + WEIGHT.tobytes(), {"offset": 4096, "length": WEIGHT.nbytes}),
        (bytes(3) + WEIGHT.tobytes() + bytes(5), {"offset": 3}),
        (WEIGHT.tobytes(), {"location": "./w.bin", "checksum": "not looked at"}),
    ],
)
def test_every_way_to_name_a_place(tmp_path: Path, content: bytes, entries: dict[str, Any]) -> None:
    (layer,) = weighted_layers(read_graph(saved(tmp_path, content=content, **entries)))
    np.testing.assert_array_equal(layer.weight, WEIGHT)
    assert not layer.weight.flags.writeable


def test_several_files_and_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = residual_pair()[0]
    inside = parse_graph(model.SerializeToString(), name="inside")
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    graph = read_graph(path)
    assert graph.constants.keys() == inside.constants.keys()
    for name, array in inside.constants.items():
        np.testing.assert_array_equal(graph.constants[name], array)
    assert graph.shapes == inside.shapes
    files = {file.name: sha256_file(file) for file in tmp_path.iterdir() if file != path}
    assert len(files) == len(model.graph.initializer)
    assert graph.sha256 == sha256_bytes(canonical_json({"onnx": sha256_file(path), "external": files}))
    weight = tmp_path / "stem.weight"
    weight.write_bytes(bytes(4) + weight.read_bytes()[4:])
    assert read_graph(path).sha256 != graph.sha256


def test_a_folder_below_and_a_link_inside(tmp_path: Path) -> None:
    path = saved(tmp_path, location="data/linked.bin")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked.bin").symlink_to(tmp_path / "w.bin")
    assert len(weighted_layers(read_graph(path))) == 1


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/hostname",
        "../outside.bin",
        "data/../../outside.bin",
        "C:\\outside.bin",
        "..\\outside.bin",
        "\\\\host\\share",
        "a\0b",
    ],
)
def test_places_outside_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"w lies in .+, which is not the name of a file beside the model"):
        read_graph(saved(folder, location=location))


@pytest.mark.parametrize("through", ["file", "folder"])
def test_links_that_lead_out_are_refused(tmp_path: Path, through: str) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "model"
    outside.mkdir()
    folder.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(outside / "w.bin" if through == "file" else outside)
    path = saved(folder, location="link" if through == "file" else "link/w.bin")
    with pytest.raises(ArtifactError, match="is a link that leads out of the model's folder"):
        read_graph(path)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"offset": 4}, r"lies at bytes 4 to 9,220 of w\.bin, which has only 9,216"),
        ({"offset": 10**17}, r"which has only 9,216"),
        ({"offset": -4}, r"has the offset '-4', which is no number of bytes"),
        ({"offset": "1e3"}, r"has the offset '1e3'"),
        ({"offset": "9" * 5000}, r"which is no number of bytes"),
        ({"length": -1}, r"has the length '-1'"),
        ({"length": 9212}, r"claims 9,212 bytes in w\.bin, but its shape and type take 9,216"),
        ({"length": 10**15}, r"claims 1,000,000,000,000,000 bytes"),
        ({"location": "gone.bin"}, r"'gone\.bin', which holds w, cannot be found \(No such file"),
        ({"location": "ring"}, r"'ring', which holds w, cannot be found"),
        ({"location": "x" * 5000}, r"cannot be found \(File name too long"),
        ({"location": "pipe"}, r"'pipe' is not a regular file"),
        ({"location": "."}, r"is a link that leads out|is not a regular file"),
        ({"location": "folder"}, r"'folder' is not a regular file"),
        ({"location": "empty"}, r"of empty, which has only 0"),
    ],
)
def test_places_that_do_not_hold_the_weight(tmp_path: Path, entries: dict[str, Any], why: str) -> None:
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match=why):
        read_graph(saved(tmp_path, **entries))


def test_dimensions_that_lie_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load_model(path, load_external_data=False)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([10**6, 10**6])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"to 4,000,000,000,000 of w\.bin, which has only 9,216"):
        read_graph(path)


def test_bytes_alone_have_no_folder(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    with pytest.raises(UsageError, match=r"model keeps weights in other files \(w and perhaps more\); put them inside"):
        parse_graph(data, name="model")


def test_shapes_in_other_files_are_inferred_from(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [value("x", 1, [2, 6])],
        [value("y", 1, ["a", "b"])],
        [numpy_helper.from_array(np.array([3, 4]), "shape")],
    )
    path = tmp_path / "model.onnx"
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save_model(model, path, save_as_external_data=True, location="all.bin", size_threshold=0)
    assert read_graph(path).constants["shape"].tolist() == [3, 4]
