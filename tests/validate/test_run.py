import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from masksparse_deploy.core.artifacts.certificate import DATA_FREE, HYBRID
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions, Gates
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.tensorrt_versions import recorded_options
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.outputs import check_outputs
from masksparse_deploy.validate.run import _as_deployed
from tests.validate.deployment import OPTIONS, WIDE_GATES, Deployment, deploy, failed, make_claim, named, set_constant

WEIGHT = "layer1.conv2.weight"
BIAS = "layer1.conv2.bias"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Deployment:
    return deploy(tmp_path_factory.mktemp("deployment"))


@pytest.fixture
def deployment(template, tmp_path) -> Deployment:
    """A copy that a test may damage."""
    shutil.copytree(template.folder, tmp_path, dirs_exist_ok=True)
    return Deployment(folder=tmp_path, samples=template.samples, certificate=template.certificate)


def test_a_sound_pair_passes(template):
    report = template.validate()
    assert report.verdict == "pass", [check for check in report.checks if check.verdict != "pass"]
    assert [layer.verdict for layer in report.layers] == ["pass"] * 4
    for layer in report.layers:
        # the kernels do round, and their bound is not so wide that it would let other weights through
        assert 1e-3 < layer.rounding_ratio < 1
        # these bounds are by Frobenius norms, for what is in front of a Relu, which cuts off half of the deviation
        assert layer.tightness is not None and 1 < layer.tightness < 50
    assert report.certificate_sha256 == template.certificate.digest
    assert "vacuous" in named(report, DATA_FREE).detail
    claim = named(report, HYBRID)
    assert claim.measured is not None and claim.bound is not None and claim.measured < claim.bound


def test_the_same_inputs_give_the_same_report(template):
    assert template.validate().to_bytes() == template.validate().to_bytes()


def test_one_wrong_weight(deployment):
    def change(array):
        array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.01
        return array

    deployment.change_plan(lambda model: set_constant(model, WEIGHT, change))
    report = deployment.validate()
    assert report.verdict == "fail"
    assert failed(report) >= {"weights of the sparse plan", "sparse engine against float64", "sparse engine against PyTorch"}
    assert "layer1.conv2: 1 of 2304 values of layer1.conv2.weight differ" in named(report, "weights of the sparse plan").detail


def test_a_weight_put_back(deployment):
    def change(array):
        array[tuple(index[0] for index in np.nonzero(array == 0))] = 1e-6
        return array

    deployment.change_plan(lambda model: set_constant(model, WEIGHT, change))
    report = deployment.validate()
    assert "pattern of the sparse plan" in failed(report)
    assert "groups keep more than 2 of 4 weights" in named(report, "pattern of the sparse plan").detail


def test_swapped_layers(deployment):
    def swap(model):
        nodes = {node.name: node for node in model.graph.node}
        first, second = nodes["layer1.conv1"], nodes["layer1.conv2"]
        first.input[1], second.input[1] = second.input[1], first.input[1]

    deployment.change_plan(swap)
    report = deployment.validate()
    detail = named(report, "weights of the sparse plan").detail
    assert "layer1.conv1: it reads layer1.conv2.weight" in detail and "layer1.conv2: it reads layer1.conv1.weight" in detail
    assert "sparse engine against float64" in failed(report)


def test_scaled_bias(deployment):
    deployment.change_plan(lambda model: set_constant(model, BIAS, lambda array: array * np.float32(1.5)))
    report = deployment.validate()
    assert "layer1.conv2: 16 of 16 values of layer1.conv2.bias differ" in named(report, "weights of the sparse plan").detail
    assert "sparse engine against float64" in failed(report)


def test_weights_rounded_to_half_precision(deployment):
    deployment.change_plan(lambda model: set_constant(model, WEIGHT, lambda array: array.astype(np.float16).astype(np.float32)))
    report = deployment.validate()
    assert failed(report) >= {"weights of the sparse plan", "sparse engine against float64"}


def test_dense_plan_deployed_as_sparse(deployment):
    dense = EngineArtifact.read(deployment.folder / "dense.engine.json")
    sparse = EngineArtifact.read(deployment.folder / "sparse.engine.json")
    (deployment.folder / sparse.plan).write_bytes((deployment.folder / dense.plan).read_bytes())
    sparse.model_copy(update={"plan_sha256": dense.plan_sha256}).write(deployment.folder / "sparse.engine.json")
    report = deployment.validate()
    assert failed(report) >= {"pattern of the sparse plan", "weights of the sparse plan", "sparse engine against float64"}
    assert named(report, "pattern of the sparse plan").measured == 4


def test_fault_in_the_dense_plan(deployment):
    deployment.change_plan(lambda model: set_constant(model, BIAS, lambda array: array + 1), name="dense")
    assert failed(deployment.validate()) >= {"weights of the dense plan", "dense engine against float64"}


def test_engine_that_gives_nan(deployment):
    deployment.change_plan(lambda model: set_constant(model, "fc.bias", lambda array: array * np.float32(np.nan)))
    report = deployment.validate()
    assert report.verdict == "fail"
    assert "480 output values are NaN" in named(report, "finite outputs").detail


def test_certificate_of_another_file(template):
    other = template.certificate.model_copy(update={"sparse_sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=f"recorded digest {'0' * 64}, the file's digest is") as caught:
        template.validate(certificate=other)
    assert template.certificate.sparse_sha256 in str(caught.value)


def test_engine_of_another_file(template):
    with pytest.raises(ArtifactError, match="the sparse engine was built from another sparse ONNX file"):
        template.validate(sparse_engine=template.folder / "dense.engine.json")


def test_plan_changed_after_the_build(deployment):
    plan = deployment.folder / "sparse.plan.onnx"
    plan.write_bytes(plan.read_bytes().replace(b"layer1.conv2.out", b"layer1.conv2.0ut"))
    with pytest.raises(ArtifactError, match=r"recorded digest .* found"):
        deployment.validate()


def test_certificate_with_a_layer_that_does_not_exist(template):
    bounds = tuple(layer.model_copy(update={"node": "nowhere"}) for layer in template.certificate.layers[:1])
    with pytest.raises(ArtifactError, match="bounds the layer nowhere, which the dense ONNX file does not have"):
        template.validate(certificate=template.certificate.model_copy(update={"layers": bounds}))


def test_layer_bound_that_is_too_small(template):
    tight = tuple(
        layer.model_copy(update={"difference_norm": 0.02 * layer.difference_norm}) for layer in template.certificate.layers
    )
    report = template.validate(certificate=template.certificate.model_copy(update={"layers": tight}))
    assert "outside their bounds: layer1.conv1" in named(report, "layers outside their bounds").detail
    allowed = template.validate(
        certificate=template.certificate.model_copy(update={"layers": tight}),
        gates=Gates(accuracy_drop_points=100.0, flip_rate=1.0, layerwise_violations=4),
    )
    assert allowed.verdict == "pass"


def test_end_to_end_bound_that_is_too_small(template):
    measured = named(template.validate(), HYBRID).measured
    assert measured is not None
    claims = (make_claim(HYBRID, 0.9 * measured, "useful"),)
    report = template.validate(certificate=template.certificate.model_copy(update={"claims": claims}))
    assert failed(report) == {HYBRID}


def test_claim_without_a_bound_does_not_decide(template):
    claims = (make_claim(HYBRID, None, "inconclusive"),)
    report = template.validate(certificate=template.certificate.model_copy(update={"claims": claims}))
    check = named(report, HYBRID)
    assert (check.verdict, check.decides, report.verdict) == ("inconclusive", False, "pass")


def test_certificate_for_other_samples(template):
    report = template.validate(certificate=template.certificate.model_copy(update={"data_sha256": "1" * 64}))
    assert "made for other samples" in named(report, HYBRID).detail


def test_certificate_without_a_changed_layer(template):
    other = template.certificate.model_copy(update={"layers": template.certificate.layers[:3]})
    with pytest.raises(ArtifactError, match=r"has no bound for the layer layer2\.conv2, which differs .* 'masksparse certify'"):
        template.validate(certificate=other)


@pytest.mark.parametrize(("shift", "message"), [(1000, "from 1000 to 1008"), (-1, "from -1 to 7")])
def test_labels_that_are_no_classes(template, shift, message):
    samples = Samples(template.samples.images, template.samples.labels + shift)
    with pytest.raises(UsageError, match=f"labels run {message}, but the network's 10 classes are numbered 0 to 9"):
        template.validate(samples=samples)


def test_labels_of_another_order_show_nothing(template):
    # no answer is right, so that none can be lost: the accuracy drop of such labels is 0
    report = template.validate(samples=Samples(template.samples.images, (template.samples.labels + 1) % 10))
    assert named(report, "dense accuracy above chance").verdict == "inconclusive"
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("count", [1, 48])
def test_images_of_one_class_show_nothing(template, count):
    samples = Samples(np.repeat(template.samples.images[:1], count, 0), np.repeat(template.samples.labels[:1], count))
    report = template.validate(samples=samples)
    assert named(report, "dense accuracy above chance").verdict == "inconclusive"
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("tensor", ["images", "dense_outputs", "sparse_outputs"])
def test_probe_with_nan(deployment, tensor):
    path = deployment.folder / "probe.safetensors"
    tensors = load_file(path)
    tensors[tensor].flat[0] = np.nan
    save_file(tensors, path)
    with pytest.raises(ArtifactError, match=f"holds NaN or infinite values in '{tensor}'"):
        deployment.validate()


def test_outputs_of_the_probe_that_are_nan():
    check = check_outputs("name", np.full((2, 3), np.nan), np.ones((2, 3)), against="the model", tolerance=1.0)
    assert (check.verdict, check.measured) == ("fail", None)
    assert "hold NaN" in check.detail


def test_nothing_masked_is_inconclusive(template, tmp_path):
    for name in ("dense", "sparse"):
        shutil.copy(template.folder / "dense.onnx", tmp_path / f"{name}.onnx")
        OnnxRuntimeBackend().build(tmp_path / f"{name}.onnx", tmp_path, OPTIONS, name=name)
    changes = {"layers": (), "claims": (), "sparse_sha256": template.certificate.dense_sha256}
    unmasked = Deployment(
        folder=tmp_path, samples=template.samples, certificate=template.certificate.model_copy(update=changes)
    )
    report = unmasked.validate(probe=None)
    assert report.verdict == "inconclusive"
    assert named(report, "layers outside their bounds").detail == "no layer was changed, so no layer was compared"


def test_flipped_labels_break_the_gate(template):
    graph = read_graph(template.folder / "sparse.onnx")
    sparse_classes = evaluate(graph, template.samples.images)["logits"].argmax(1)
    gates = Gates(accuracy_drop_points=0.0, flip_rate=1.0)
    # where the labels are the sparse network's own classes it cannot lose; the dense network's classes take them away
    assert template.validate(samples=Samples(template.samples.images, sparse_classes), gates=gates).accuracy.drop_points < 0
    report = template.validate(gates=gates)
    assert failed(report) == {"accuracy drop"}
    assert report.accuracy.drop_interval.low > 0


def test_flip_gate(template):
    report = template.validate(gates=Gates(accuracy_drop_points=100.0, flip_rate=0.0))
    assert failed(report) == {"changed predictions"}
    assert report.accuracy.disagreement_count > 0


def test_require_interval_makes_a_narrow_pass_inconclusive(template):
    rate = template.validate().accuracy.flip_rate
    loose = Gates(accuracy_drop_points=100.0, flip_rate=rate + 1e-6)
    assert template.validate(gates=loose).verdict == "pass"
    strict = loose.model_copy(update={"require_interval": True})
    report = template.validate(gates=strict)
    assert report.verdict == "inconclusive"
    assert "more samples are needed" in named(report, "changed predictions").detail


def test_without_a_probe(template):
    report = template.validate(probe=None)
    assert report.verdict == "pass"
    assert named(report, "sparse engine against PyTorch").verdict == "inconclusive"


@pytest.mark.parametrize("content", [b"", b"not a probe"])
def test_damaged_probe(deployment, content):
    (deployment.folder / "probe.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        deployment.validate()


def test_missing_engine(template):
    with pytest.raises(UsageError, match="does not exist"):
        template.validate(sparse_engine=template.folder / "nothing.engine.json")


def test_a_fresh_image_is_spoken_of_with_the_samples_that_were_drawn(template):
    report = template.validate()
    deviation = report.deviation
    assert deviation is not None and deviation.quantile is not None
    assert (deviation.sample_count, deviation.fresh_count, report.accuracy.total) == (24, 24, 48)
    # the quantile is one of the measured distances, none of which is above the largest
    assert deviation.quantile <= named(report, HYBRID).measured
    separate = template.validate(gates=WIDE_GATES.model_copy(update={"conformal_separate": True}))
    assert separate.accuracy.total == 24
    assert separate.deviation.quantile == deviation.quantile
    other = template.validate(gates=WIDE_GATES.model_copy(update={"conformal_seed": 3, "conformal_share": 0.7}))
    assert other.deviation.sample_count == 34


def test_exposed_layers_are_built_with_the_options_of_the_deployed_engine() -> None:
    """With others, as tactic sources that are not installed, it would have other kernels, or none."""
    built = EngineOptions(batch=16, workspace_mib=512, tactic_sources=("JIT_CONVOLUTIONS",), sparse_tactics=False)
    engine = EngineArtifact.model_construct(options=recorded_options(built))
    like = _as_deployed(engine, EngineOptions(backend="tensorrt", batch=4, threads=3))
    assert (like.batch, like.workspace_mib, like.tactic_sources, like.sparse_tactics) == (16, 512, ("JIT_CONVOLUTIONS",), False)
    assert (like.backend, like.threads) == ("tensorrt", 3)
