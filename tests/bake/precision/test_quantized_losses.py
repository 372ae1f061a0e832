"""What INT8 loses, counted: against values computed by hand."""

import numpy as np
import pytest
from onnx import numpy_helper

from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.bake.precision.quantized_losses import quantization_losses
from masksparse_deploy.core.errors import UsageError
from tests.bake.precision.quantized_models import images, in_opset, network, outputs, parsed, stored
from tests.models.make_onnx import residual_pair


@pytest.mark.parametrize("opset", [17, 20])
def test_weights_that_become_zero(opset: int) -> None:
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)}, opset=opset)
    array = np.ones((8, 4, 3, 3), np.float32)
    array[2, 0] = 0.003  # below half a step of 1/127
    array[3, 1, 0, 0] = 0
    array[4] *= 1e-3  # a small channel has small steps
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    (found,) = quantization_losses(model, parsed(quantize(model, images(8, (4, 6, 6)))))
    assert (found.node, found.weight, found.weight_largest) == ("conv0", "w", 1.0)
    assert (found.weight_nonzero_count, found.weight_flushed_count, found.weight_overflow_count) == (287, 9, 0)
    assert found.output_largest is found.output_overflow_count is found.output_flushed_share is None


def test_a_scale_that_is_too_small_overflows() -> None:
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)})
    quantized = quantize(model, images(8, (4, 6, 6)))
    scale = next(tensor for tensor in quantized.graph.initializer if tensor.name == "w_scale")
    scale.CopyFrom(numpy_helper.from_array(stored(quantized, "w_scale") / 2, "w_scale"))
    (found,) = quantization_losses(model, parsed(quantized))
    array = np.abs(stored(model, "w"))
    limits = stored(quantized, "w_scale").reshape(-1, 1, 1, 1) * 127.5
    assert found.weight_overflow_count == (array >= limits).sum() > 0


def test_outputs_beyond_the_grid_and_below_its_step() -> None:
    model = network("c = Conv (x, w)\n r = Relu (c)\n y = Conv (r, v)", {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})
    calibration, others = images(16, (4, 6, 6)), images(16, (4, 6, 6), seed=5)
    quantized = quantize(model, calibration)
    graph = parsed(quantized)
    first, last = quantization_losses(model, graph, calibration)
    assert first.output_overflow_count == 0 and last.output_largest is None  # min-max clips nothing it has seen
    first, _ = quantization_losses(model, graph, others * 2)
    del model.graph.node[2]
    model.graph.node[1].output[0] = "y"
    values = outputs(model, others * 2)
    steps = values / stored(quantized, "r_scale")
    assert first.output_largest == values.max()
    # Sums in another order differ in the last bits, 1e-6 of the sum: too little to move more than one value over an edge
    assert abs(first.output_overflow_count - (steps >= 127.5).sum()) <= 1 < first.output_overflow_count
    share = ((values != 0) & (np.abs(steps) <= 0.5)).sum() / np.count_nonzero(values)
    assert first.output_flushed_share == pytest.approx(share, abs=1 / np.count_nonzero(values))


def test_clipping_methods_clip_and_their_losses_tell() -> None:
    model = residual_pair()[1]
    batch = images(64)
    found = {
        method: sum(layer.output_overflow_count or 0 for layer in quantization_losses(model, parsed(quantized), batch))
        for method in ("minmax", "entropy", "percentile")
        if (quantized := quantize(model, batch, method=method))  # type: ignore[arg-type]
    }
    assert found["minmax"] == 0 < found["percentile"] < found["entropy"]


def test_layers_in_float_lose_nothing() -> None:
    model = in_opset(residual_pair()[1], 17)
    graph = parsed(quantize(model, images(), exclude=["stem"]))
    names = [layer.node for layer in quantization_losses(model, graph)]
    assert names == ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.shortcut", "layer2.conv2", "fc"]


def test_images_that_do_not_fit() -> None:
    model = residual_pair()[1]
    with pytest.raises(UsageError, match=r"images are float32 \(2, 4, 8, 8\), but the network's input images takes"):
        quantization_losses(model, parsed(quantize(model, images())), images(2, (4, 8, 8)))
