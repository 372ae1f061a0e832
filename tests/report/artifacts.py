"""A whole set of artifacts with made-up figures, for looking at reports."""

from typing import Any

from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.artifacts.document import Interval, SkippedLayer
from masksparse_deploy.core.artifacts.learning import LearnReport, MaskedLayer, MethodAccuracy, Share, TrainingPoint
from masksparse_deploy.core.artifacts.rewriting import LayerRewrite, RewriteReport, TimedForm
from masksparse_deploy.core.artifacts.selection import Assigned, LayerSelection, LayerSensitivity, Measured, SelectionStep
from masksparse_deploy.report.inputs import Provenance, ReportInputs
from tests.report.engine_artifacts import make_engine, make_profile
from tests.report.made_up import LAYERS, digest
from tests.report.validation_artifacts import make_certificate, make_validation

STAGES = ("learn", "bake", "dense_engine", "sparse_engine", "profile", "certificate", "validation")


def make_inputs(**changes: Any) -> ReportInputs:
    """All stages have run; the verdict is a pass; the runtime is no faster."""
    values: dict[str, Any] = {
        "name": "digits",
        "selection": make_selection(),
        "learn": make_learn(),
        "bake": make_bake(),
        "dense_engine": make_engine("dense"),
        "sparse_engine": make_engine("sparse"),
        "profile": make_profile(),
        "certificate": make_certificate(),
        "validation": make_validation(),
        "provenance": Provenance(
            command="masksparse deploy samples/digits/deploy.yaml",
            date="1 January 2030, 12:00 UTC",
            config_text='model:  {factory: "model:digits_net", weights: model.safetensors}\nmask:   {pattern: "2:4"}\n',
            versions={"masksparse-deploy": "0.1.0", "numpy": "2.0.0", "torch": "2.9.0"},
        ),
    }
    return ReportInputs(**{**values, **changes})


def make_selection() -> LayerSelection:
    """All layers but the last one that was tried get a mask."""
    total = 597
    measured = [
        Measured(correct=594 - i // 2, drop_points=100 * (i // 2) / total, divergence=1e-5 * 3**i, statistics_updated=True)
        for i in range(9)
    ]
    layers = tuple(
        LayerSensitivity(
            name=name,
            shape=(out, into, kernel, kernel),
            mac_count=out * into * kernel**2 * positions,
            saved_mac_count=out * into * kernel**2 * positions // 2,
            alone=found,
        )
        for found, (name, out, into, kernel, positions) in zip(measured, LAYERS, strict=True)
    )
    steps = tuple(SelectionStep(layer=layer.name, joint=layer.alone, kept=layer.name != LAYERS[-1][0]) for layer in layers)
    assignment = {
        step.layer: Assigned(pattern="2:4", reason="within the budget: 0.50 points lost up to here, 0.6 allowed")
        if step.kept
        else Assigned(pattern="dense", reason="over the budget: 0.67 points would be lost, 0.6 allowed")
        for step in steps
    }
    assignment["stem"] = Assigned(pattern="dense", reason="1 input channel, not a multiple of 4")
    macs = sum(layer.mac_count for layer in layers)
    return LayerSelection(
        source_sha256=digest("weights"),
        pattern="2:4",
        method="magnitude",
        budget_points=0.6,
        targets=None,
        decided_on="test",
        data_sha256=digest("samples"),
        dense_correct=594,
        total=total,
        layers=layers,
        steps=steps,
        joint=steps[-2].joint,
        assignment=assignment,
        macs=Share(masked=macs - layers[-1].mac_count, total=macs + 19_072),
        amdahl_limit=1.75,
        seed=0,
    )


def make_learn() -> LearnReport:
    layers = tuple(
        MaskedLayer(
            name=name,
            weight_name=f"{name}.weight",
            shape=(out, into, kernel, kernel),
            pattern="2:4",
            group_axis=1,
            density=0.5,
            kept_magnitude_share=0.78 + 0.01 * index,
            weight_count=out * into * kernel**2,
            mac_count=out * into * kernel**2 * positions,
        )
        for index, (name, out, into, kernel, positions) in enumerate(LAYERS)
    )
    skipped = (
        SkippedLayer(name="stem", reason="1 input channel: not a multiple of 4", weight_count=288, mac_count=18_432),
        SkippedLayer(name="fc", reason="excluded by the configuration", weight_count=640, mac_count=640),
    )
    macs, weights = sum(layer.mac_count for layer in layers), sum(layer.weight_count for layer in layers)
    counts = (("dense", 594), ("magnitude", 126), ("magnitude + batch norm", 590), ("scores", 593))
    return LearnReport(
        method="scores",
        pattern="2:4",
        mask_set_sha256=digest("masks"),
        source_sha256=digest("weights"),
        weights_sha256_before=digest("parameters"),
        weights_sha256_after=digest("parameters"),
        statistics_updated=True,
        layers=layers,
        skipped=skipped,
        convolutions=Share(masked=9, total=10),
        parameters=Share(masked=weights, total=weights + 928),
        macs=Share(masked=macs, total=macs + 19_072),
        amdahl_limit=1.98,
        accuracies=tuple(MethodAccuracy(method=method, correct=correct, total=597) for method, correct in counts),
        history=tuple(TrainingPoint(epoch=epoch, loss=0.5 / epoch) for epoch in range(1, 6)),
        seed=0,
    )


def make_bake() -> BakeReport:
    layers = tuple(
        BakedLayer(
            layer=name,
            weight_name=f"{name}.weight",
            node=f"node_{name}",
            initializer=f"{name}.weight",
            shape=(out, into, kernel, kernel),
            pattern="2:4",
            group_axis=1,
            density=0.5,
            group_count=out * into * kernel**2 // 4,
            violation_count=0,
            mask_sha256=digest(name),
        )
        for name, out, into, kernel, _ in LAYERS
    )
    return BakeReport(
        dense_sha256=digest("dense"),
        sparse_sha256=digest("sparse"),
        mask_set_sha256=digest("masks"),
        probe_sha256=digest("probe"),
        opset=20,
        precision="fp32",
        statistics_updated=True,
        layers=layers,
        skipped=(),
    )


def make_rewrite(*, rewritten: bool = True) -> RewriteReport:
    """Two of the layers are faster over gathered channels, the narrow one is not; or none is."""

    def layer(node: str, dense_ms: float, gathered_ms: float) -> LayerRewrite:
        gains = rewritten and gathered_ms < dense_ms
        speedup = dense_ms / gathered_ms
        return LayerRewrite(
            node=node,
            pattern="1x32@0.5",
            form="gathered" if gains else "dense",
            reason="1.80 times as fast as the dense layer" if gains else "the dense layer is faster",
            density=0.5,
            computed_density=0.5 if gains else 1.0,
            ideal=2.0,
            times=(
                TimedForm(form="dense", variant="", median_ms=dense_ms, from_cache=False),
                TimedForm(form="gathered", variant="16 channels a group", median_ms=gathered_ms, from_cache=True),
            ),
            speedup=speedup if gains else 1.0,
            interval=Interval(low=0.98 * speedup, high=1.02 * speedup, confidence=0.95) if gains else None,
        )

    return RewriteReport(
        sparse_sha256=digest("sparse onnx"),
        rewritten_sha256=digest("rewritten onnx") if rewritten else None,
        backend="onnxruntime",
        device="A processor",
        versions={"onnxruntime": "1.20"},
        batch=1,
        threads=1,
        channel_block=16,
        layers=(
            layer("layer2.0.conv2", 0.9, 0.5),
            layer("layer2.1.conv1", 0.9, 0.48),
            layer("layer2.0.shortcut", 0.1, 0.13),
        ),
        speedup=1.31 if rewritten else None,
        interval=Interval(low=1.28, high=1.34, confidence=0.95) if rewritten else None,
        remarks=("one layer is quantized and stays dense",) if rewritten else (),
    )
