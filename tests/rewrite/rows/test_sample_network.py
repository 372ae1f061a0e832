"""The digits network of the samples, as the tool exports it, in rows."""

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.rewrite.forms import rewritten
from tests.rewrite.rows.models import findings
from tools.rows_benchmark import FORMS, with_positions

_SAMPLE = Path(__file__).parents[3] / "samples" / "digits"


@functools.cache
def digits() -> onnx.ModelProto:
    """Trained, so that no bias is zero, with 30 % of the positions of every 3x3 convolution left out."""
    from safetensors.torch import load_file

    network = load_factory("model:digits_net", _SAMPLE)()
    network.load_state_dict(load_file(_SAMPLE / "model.safetensors"))
    exported = onnx.load_model_from_string(export_onnx(network.eval(), (1, 8, 8), opset=20))
    return with_positions(onnx.shape_inference.infer_shapes(exported, data_prop=True), 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 5])
def test_the_digits_network_is_the_same_function(form: str, count: int) -> None:
    """To 1e-5 of the largest output, the tolerance chosen for networks; sums of 577 float32 terms are off by 3.5e-5 at most."""
    model = digits()
    masked = [node.name.removesuffix(".positions") for node in model.graph.node if node.op_type == "Where"]
    after = rewritten(model, dict.fromkeys(masked, FORMS[form]))
    images = np.random.default_rng(0).random((count, 1, 8, 8), dtype=np.float32)
    outputs = []
    for one in (model, after):
        session = onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {one.graph.input[0].name: images})[0])
    assert len(masked) == 9
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5 * np.abs(outputs[0]).max())
    assert findings(model, after) == ()
