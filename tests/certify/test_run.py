"""The certify stage from files to certificate."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.certify import claims
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import DATA_FREE, END_TO_END, HYBRID, LAYERWISE, Certificate, Claim
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.decimals import rounded_up
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.evaluate import apply_layer, evaluate
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from tests.certify.networks import Builder
from tests.models.make_onnx import MASKED_LAYERS, residual_pair

OPTIONS = CertifyOptions(sample_count=12, grid=8)


def make_samples(count: int = 20, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Samples:
    images = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    return Samples(images, np.zeros(count, dtype=np.int64))


def write_pair(folder: Path, models: tuple[onnx.ModelProto, onnx.ModelProto]) -> tuple[Path, Path]:
    paths = folder / "dense.onnx", folder / "sparse.onnx"
    for path, model in zip(paths, models, strict=True):
        path.write_bytes(model.SerializeToString())
    return paths


def nudged(models: tuple[onnx.ModelProto, onnx.ModelProto], factor: float) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The same pair, where the sparse file has gone only `factor` of the way from the dense one."""
    dense, sparse = models
    pairs = zip(dense.graph.initializer, sparse.graph.initializer, strict=True)
    for one, other in pairs:
        start, end = numpy_helper.to_array(one), numpy_helper.to_array(other)
        other.CopyFrom(numpy_helper.from_array(start + np.float32(factor) * (end - start), other.name))
    return dense, sparse


def by_name(certificate: Certificate) -> dict[str, Claim]:
    return {claim.name: claim for claim in certificate.claims}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, residual_pair())


def test_layers_are_bounded_for_what_masking_removed(paths: tuple[Path, Path]) -> None:
    certificate = certify(*paths, make_samples(), OPTIONS)
    assert [layer.node for layer in certificate.layers] == list(MASKED_LAYERS)
    assert [layer.initializer for layer in certificate.layers] == [f"{name}.weight" for name in MASKED_LAYERS]
    assert [layer.layer for layer in certificate.layers] == list(MASKED_LAYERS)
    dense, sparse = read_graph(paths[0]), read_graph(paths[1])
    inputs = [layer.node.inputs[0] for layer in weighted_layers(sparse)]
    x = evaluate(sparse, make_samples().images, [name for name in inputs if name != "images"])
    pairs = {a.node.name: (a, b) for a, b in zip(weighted_layers(dense), weighted_layers(sparse), strict=True)}
    for layer in certificate.layers:
        one, other = pairs[layer.node]
        assert layer.removed_norm == layer.difference_norm  # no statistics were re-estimated
        assert layer.bias_difference == 0
        assert layer.removed_norm < layer.dense_norm
        source = x[one.node.inputs[0]]
        moved = apply_layer(one, source) - apply_layer(other, source)
        assert layer.output_positions == math.prod(moved.shape[2:])
        limit = layer.difference_norm * np.linalg.norm(source.reshape(len(source), -1), axis=1)
        assert (np.linalg.norm(moved.reshape(len(moved), -1), axis=1) <= limit).all()


def test_biases_and_scaled_weights_are_in_the_layer_bound(tmp_path: Path) -> None:
    dense, sparse = residual_pair()
    for tensor in sparse.graph.initializer:
        if tensor.name.startswith("layer1.conv1"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.25), tensor.name))
    certificate = certify(*write_pair(tmp_path, (dense, sparse)), make_samples(), OPTIONS)
    layer = certificate.layers[0]
    bias = next(numpy_helper.to_array(t) for t in dense.graph.initializer if t.name == "layer1.conv1.bias")
    # float32 rounding of the scaled bias
    assert layer.bias_difference == pytest.approx(0.25 * np.linalg.norm(bias), rel=1e-5)
    assert layer.difference_norm != layer.removed_norm


def test_five_claims_with_statement_method_and_assumptions(paths: tuple[Path, Path]) -> None:
    samples = make_samples()
    certificate = certify(*paths, samples, OPTIONS)
    assert [claim.name for claim in certificate.claims] == [LAYERWISE, *END_TO_END]
    assert certificate.unsupported == ()
    assert certificate.data_sha256 == samples.digest
    for claim in certificate.claims:
        assert claim.bound is not None and claim.measured is not None and claim.tightness is not None
        assert claim.bound >= claim.measured
        assert claim.tightness == pytest.approx(claim.bound / claim.measured)
        assert claim.statement.endswith(".")
        assert any("exact real arithmetic" in text for text in claim.assumptions)
    found = by_name(certificate)
    assert found[LAYERWISE].status == "useful"
    assert found[HYBRID].sample_count == 12
    assert any(samples.digest in text for text in found[HYBRID].assumptions)
    bounds = [found[name].bound or 0.0 for name in END_TO_END]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < bounds[0]
    assert certificate.smallest == next(name for name in END_TO_END if found[name].bound == bounds[-1])
    assert certificate.grid == 8


def test_a_bound_that_certifies_no_sample_is_called_vacuous(paths: tuple[Path, Path]) -> None:
    claim = by_name(certify(*paths, make_samples(), OPTIONS))[HYBRID]
    assert claim.certified_count == 0
    assert claim.status == "vacuous"
    assert "Vacuous: true, but it proves of none of the 12 samples that its predicted class stays" in claim.detail
    assert "times the largest measured distance" in claim.detail


def test_a_small_change_is_certified(tmp_path: Path) -> None:
    paths = write_pair(tmp_path, nudged(residual_pair(), 1e-4))
    found = by_name(certify(*paths, make_samples(), OPTIONS))
    assert found[HYBRID].status == "useful"
    assert (found[HYBRID].certified_count or 0) >= 6
    assert "of 12 samples that masking does not change the predicted class" in found[HYBRID].detail
    assert found[DATA_FREE].sample_count == 12


def test_files_that_are_equal(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    certificate = certify(*write_pair(tmp_path, (dense, dense)), make_samples(), OPTIONS)
    found = by_name(certificate)
    assert certificate.layers == ()
    assert found[LAYERWISE].status == "inconclusive"
    assert found[LAYERWISE].detail.endswith("nothing is masked.")
    assert (found[HYBRID].bound, found[HYBRID].tightness) == (0.0, None)
    assert found[HYBRID].certified_count == 12
    assert certificate.smallest == DATA_FREE  # of equal bounds the one that holds for most


def small_network(*operators: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution, the operators in a row, a Div by the convolution, and a convolution."""
    build = Builder(0)
    first = x = build.conv("x", 4, 4)
    for op in operators:
        x = build.node(op, x, first) if op == "Div" else build.node(op, x)
    x = build.node("Flatten", build.node("GlobalAveragePool", build.conv(x, 4, 4)))
    dense = build.model(x, ("batch", 4))
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)
    kernel = sparse.graph.initializer[0]
    array = numpy_helper.to_array(kernel).copy()
    array[:, ::2] = 0
    kernel.CopyFrom(numpy_helper.from_array(array, kernel.name))
    return dense, sparse


def test_an_operator_that_is_not_covered_is_named_and_only_the_layers_are_claimed(tmp_path: Path) -> None:
    paths = write_pair(tmp_path, small_network("Sin"))
    certificate = certify(*paths, make_samples(shape=(4, 7, 7)), OPTIONS)
    assert certificate.unsupported == ("Sin",)
    found = by_name(certificate)
    assert found[LAYERWISE].status == "useful"
    assert found[LAYERWISE].measured is None
    assert len(certificate.layers) == 1
    for name in END_TO_END:
        assert found[name].status == "inconclusive"
        assert found[name].bound is None
        assert "has no rule for Sin" in found[name].detail


def test_a_quotient_is_measured_but_has_no_rule(tmp_path: Path) -> None:
    certificate = certify(*write_pair(tmp_path, small_network("Sigmoid", "Div")), make_samples(shape=(4, 7, 7)), OPTIONS)
    found = by_name(certificate)
    assert found[LAYERWISE].measured is not None
    for name in END_TO_END:
        assert found[name].bound is None
        assert "has no rule for Div by a computed tensor" in found[name].detail


def test_an_output_that_is_not_logits_is_inconclusive(tmp_path: Path) -> None:
    build = Builder(0)
    dense = build.model(build.conv("x", 4, 4), ("batch", 4, 7, 7))
    certificate = certify(*write_pair(tmp_path, (dense, dense)), make_samples(shape=(4, 7, 7)), OPTIONS)
    assert "no class to certify" in by_name(certificate)[HYBRID].detail


def test_a_printed_bound_is_never_below_the_proved_one(paths: tuple[Path, Path]) -> None:
    samples = make_samples()
    found = by_name(certify(*paths, samples, OPTIONS))
    for name in END_TO_END:
        printed = float(found[name].statement.rstrip(".").split()[-1])
        bound = found[name].bound
        assert bound is not None
        assert printed >= bound
        assert printed == pytest.approx(bound, rel=1e-5)  # six digits
    radius = float(found[DATA_FREE].statement.split("is at most ")[1].split(",")[0])
    assert radius >= np.linalg.norm(samples.images.reshape(20, -1).astype(np.float64), axis=1).max()
    assert [rounded_up(value) for value in (0.0, 0.1234561, 123456.1, 2.5)] == [0.0, 0.123457, 123457.0, 2.5]


def test_a_bound_beyond_all_numbers_is_inconclusive(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksparse_deploy.certify.run.data_free_bound", lambda *_, **__: math.inf)
    claim = by_name(certify(*paths, make_samples(), OPTIONS))[DATA_FREE]
    assert (claim.status, claim.bound) == ("inconclusive", None)


def test_a_layer_of_which_only_the_bias_changed_is_bounded(tmp_path: Path) -> None:
    dense, sparse = residual_pair()
    (tensor,) = (entry for entry in sparse.graph.initializer if entry.name == "fc.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1), tensor.name))
    certificate = certify(*write_pair(tmp_path, (dense, sparse)), make_samples(), OPTIONS)
    layer = certificate.layers[-1]
    assert (layer.node, layer.difference_norm) == ("fc", 0.0)
    assert layer.bias_difference == pytest.approx(math.sqrt(10), rel=1e-6)  # ten biases moved by 1, rounded to float32


def test_a_masked_layer_whose_bias_is_computed_is_refused(tmp_path: Path) -> None:
    models = residual_pair()
    for model in models:
        node = next(entry for entry in model.graph.node if entry.name == "layer1.conv1")
        model.graph.node.insert(0, onnx.helper.make_node("Relu", [node.input[2]], ["computed"], name="copy"))
        node = next(entry for entry in model.graph.node if entry.name == "layer1.conv1")
        node.input[2] = "computed"
    with pytest.raises(UsageError, match=r"layer1\.conv1 is masked, and there is no bound for Conv with a computed bias"):
        certify(*write_pair(tmp_path, models), make_samples(), OPTIONS)


def test_masked_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    models = residual_pair()
    for model in models:
        next(entry for entry in model.graph.node if entry.name == "layer1.conv1").name = "layer1.conv2"
    with pytest.raises(UsageError, match=r"two masked layers are called layer1\.conv2"):
        certify(*write_pair(tmp_path, models), make_samples(), OPTIONS)


def test_images_of_another_shape_are_refused(paths: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"\(20, 1, 8, 8\), the model's input 'images' takes \(count, 3, 8, 8\)"):
        certify(*paths, make_samples(shape=(1, 8, 8)), OPTIONS)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    dense, sparse = residual_pair()
    tensor = next(entry for entry in sparse.graph.initializer if entry.name == "fc.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ArtifactError, match=r"sparse\.onnx: the weight 'fc\.weight' holds NaN"):
        certify(*write_pair(tmp_path, (dense, sparse)), make_samples(), OPTIONS)


def test_files_of_different_networks_are_refused(tmp_path: Path) -> None:
    models = residual_pair()[0], residual_pair(channels=8)[1]
    with pytest.raises(ArtifactError, match="do not belong together"):
        certify(*write_pair(tmp_path, models), make_samples(), OPTIONS)


def test_the_same_inputs_give_the_same_bytes_and_survive_the_disk(paths: tuple[Path, Path], tmp_path: Path) -> None:
    first = certify(*paths, make_samples(), OPTIONS)
    assert certify(*paths, make_samples(), OPTIONS).to_bytes() == first.to_bytes()
    first.write(tmp_path / "certificate.json")
    assert Certificate.read(tmp_path / "certificate.json") == first


def test_progress_is_told(paths: tuple[Path, Path]) -> None:
    told: list[tuple[str, int, int]] = []
    certify(*paths, make_samples(), OPTIONS, progress=lambda *entry: told.append(entry))
    assert told[-1] == ("bounding layers", 4, 4)
    assert ("bounding the network's deviation", 12, 12) in told


def test_a_certified_sample_that_flips_is_our_bug(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def all_certified(logits: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return np.ones(len(logits), dtype=np.bool_)

    monkeypatch.setattr(claims, "certified_by_margin", all_certified)
    with pytest.raises(AssertionError, match="a certified sample changes its predicted class"):
        certify(*paths, make_samples(count=300), CertifyOptions(sample_count=300, grid=8))
