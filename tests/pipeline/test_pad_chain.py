"""The whole chain on a network whose channels are no multiples of four."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from tests.models.narrow_cnn import MASKED_LAYERS, narrow_cnn
from tests.models.tiny_cnn import example_images
from tests.project import make_project, masksparse

FACTORY = "tests.models.narrow_cnn:narrow_cnn"


def narrow_project(folder: Path) -> Path:
    model = narrow_cnn()
    config = make_project(folder, model={"factory": FACTORY}, mask={"pad_channels": True, "epochs": 1})
    save_file(model.state_dict(), folder / "model.safetensors")
    for name, count, seed in (("train", 256, 1), ("test", 128, 2)):
        images = example_images(count, seed=seed)
        with torch.no_grad():
            labels = model(torch.from_numpy(images)).argmax(1).numpy()
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    return config


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a chain that has run once."""
    folder = tmp_path_factory.mktemp("narrow")
    result = masksparse("deploy", narrow_project(folder))
    assert result.returncode == 0, result.stderr + result.stdout
    return folder / "out"


def test_layers_with_groups_that_are_not_full_are_deployed(deployed: Path) -> None:
    assert json.loads((deployed / "validation.json").read_text())["verdict"] == "pass"
    masks = read_mask_set(deployed / "masks.safetensors")
    assert set(masks.layers) == {f"{layer}.weight" for layer in MASKED_LAYERS}
    shapes = {layer.weight_name: layer.weight.shape for layer in weighted_layers(read_graph(deployed / "sparse.onnx"))}
    assert shapes["stem.weight"] == (8, 3, 3, 3)
    assert shapes["conv1.weight"] == (10, 8, 3, 3)
    assert shapes["conv2.weight"] == (10, 12, 3, 3)
    lint = masksparse("lint", deployed / "sparse.onnx", "--json")
    assert lint.returncode == 0, lint.stdout
    states = {layer["weight"]: layer["state"] for layer in json.loads(lint.stdout)["layers"]}
    assert {name: states[name] for name in masks.layers} == dict.fromkeys(masks.layers, "conforming")


def test_the_report_tells_what_padding_costs(deployed: Path) -> None:
    report = json.loads((deployed / "bake.json").read_text())
    masks = read_mask_set(deployed / "masks.safetensors")
    assert report["mask_set_sha256"] == masks.digest
    rows = [(layer["weight"], layer["by"], layer["extra_weight_count"], layer["extra_mac_count"]) for layer in report["padded"]]
    assert rows == [
        ("stem.weight", "outputs only", 2 * 3 * 9, 64 * 2 * 3 * 9),
        ("conv1.weight", "producer", 10 * 2 * 9, 16 * 10 * 2 * 9),
        ("conv2.weight", "pad node", 10 * 2 * 9, 16 * 10 * 2 * 9),
    ]


def test_the_padded_dense_file_computes_what_the_trained_network_does(deployed: Path) -> None:
    images = example_images(16, seed=3)
    with torch.inference_mode():
        expected = narrow_cnn()(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(deployed / "dense.onnx", providers=["CPUExecutionProvider"])
    # The longest of four sums in a row has 10 * 9 terms: 4 * 90 * 2^-24 = 2.1e-5 of magnitudes that add up to less than 50.
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, rtol=0, atol=2.2e-5 * 50)
