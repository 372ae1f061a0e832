"""A model that protobuf could not hold."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

ROW_COUNT, LENGTH, LAYER_COUNT = 8192, 8192, 9
LINT = """
import resource, sys
from pathlib import Path
from masksparse_deploy.bake.lint import lint
report = lint(Path(sys.argv[1]))
print(len(report.layers), report.ok, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_more_than_two_gigabytes_of_weights(tmp_path: Path) -> None:
    layer_bytes = ROW_COUNT * LENGTH * 4
    file_bytes = LAYER_COUNT * layer_bytes
    assert file_bytes > 2**31
    with (tmp_path / "weights.bin").open("wb") as stream:
        stream.truncate(file_bytes)  # a hole: zeros that take no place on the disk
    nodes, tensors = [], []
    for index in range(LAYER_COUNT):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[ROW_COUNT, LENGTH])
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "weights.bin", "offset": index * layer_bytes, "length": layer_bytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("Gemm", [f"x{index}", f"w{index}"], [f"x{index + 1}"], transB=1))
    values = [helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, ["n", LENGTH]) for index in (0, LAYER_COUNT)]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert onnx.load_model(tmp_path / "model.onnx", load_external_data=False).graph.initializer[0].name == "w0"
    done = subprocess.run(
        [sys.executable, "-c", LINT, str(tmp_path / "model.onnx")], check=True, capture_output=True, text=True
    )
    layer_count, ok, peak_bytes = done.stdout.split()
    assert (layer_count, ok) == (str(LAYER_COUNT), "True")
    # Pages of the mapped file count too, though the system can take them back: the file once, and little beside it.
    assert int(peak_bytes) < 2 * file_bytes
