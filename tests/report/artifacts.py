"""A whole set of artifacts with made-up figures, for looking at reports."""

import math
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.attribution import Attribution, DeviationParts, LayerAttribution
from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.artifacts.certificate import (
    DATA_FREE,
    HYBRID,
    LAYERWISE,
    MEASURED_NORMS,
    Certificate,
    Claim,
    LayerBound,
)
from masksparse_deploy.core.artifacts.document import Interval, SkippedLayer
from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.gpu_state import GpuReading, GpuState
from masksparse_deploy.core.artifacts.learning import LearnReport, MaskedLayer, MethodAccuracy, Share, TrainingPoint
from masksparse_deploy.core.artifacts.rewriting import LayerRewrite, RewriteReport, TimedForm
from masksparse_deploy.core.artifacts.selection import Assigned, LayerSelection, LayerSensitivity, Measured, SelectionStep
from masksparse_deploy.core.artifacts.survival import LayerSurvival, StageState
from masksparse_deploy.core.artifacts.timing import (
    BuildTime,
    EndToEnd,
    EngineRatio,
    EngineRole,
    Latency,
    LayerTime,
    ProfileReport,
    RunConditions,
    Speedup,
)
from masksparse_deploy.core.artifacts.validation import Check, DeviationQuantile, LayerDeviation, ValidationReport
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.report.inputs import Provenance, ReportInputs
from masksparse_deploy.validate.intervals import compare_accuracy

STAGES = ("learn", "bake", "dense_engine", "sparse_engine", "profile", "certificate", "validation")

# name, out channels, in channels, kernel, output positions
LAYERS = (
    ("layer1.0.conv1", 32, 32, 3, 64),
    ("layer1.0.conv2", 32, 32, 3, 64),
    ("layer1.1.conv1", 32, 32, 3, 64),
    ("layer1.1.conv2", 32, 32, 3, 64),
    ("layer2.0.conv1", 64, 32, 3, 16),
    ("layer2.0.conv2", 64, 64, 3, 16),
    ("layer2.0.shortcut", 64, 32, 1, 16),
    ("layer2.1.conv1", 64, 64, 3, 16),
    ("layer2.1.conv2", 64, 64, 3, 16),
)


def digest(text: str) -> str:
    return sha256_bytes(text.encode())


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


def make_engine(name: str, *, gpu: bool = False) -> EngineArtifact:
    def layer(index: int, node: str) -> EngineLayer:
        if gpu and index % 3:
            return EngineLayer(
                name=node,
                onnx_nodes=(node,),
                tactic="made_up_sparse_fprop_kernel",
                is_sparse=True,
                reason="chosen by the builder",
            )
        reason = "the dense kernel was faster" if gpu else "ONNX Runtime has no 2:4 kernels"
        return EngineLayer(name=node, onnx_nodes=(node,), tactic="Conv", is_sparse=False, reason=reason)

    return EngineArtifact(
        backend="tensorrt" if gpu else "onnxruntime",
        plan=f"{name}.plan.onnx",
        plan_sha256=digest(f"{name} plan"),
        source_sha256=digest(name),
        precision="fp32",
        options={"batch": 64, "threads": 0},
        versions={"tensorrt" if gpu else "onnxruntime": "1.2.3"},
        device=DeviceFacts(
            kind="cuda" if gpu else "cpu",
            name="Made-up GPU" if gpu else "Made-up CPU @ 3.00GHz",
            details={"architecture": "x86_64", "hardware_threads": "2"},
        ),
        layers=tuple(layer(index, name) for index, (name, *_) in enumerate(LAYERS)),
        exposed=(),
        sparse_kernels="6 of 9 masked layers run sparse kernels"
        if gpu
        else "this runtime has no 2:4 kernels: it multiplies the zeros too",
    )


def make_latency(median_ms: float, seed: int) -> Latency:
    generator = np.random.default_rng(seed)
    times = median_ms * (1 + 0.02 * generator.gamma(2.0, 1.0, 300))
    times[generator.integers(0, 300, 3)] *= 1.7
    rounded = tuple(round(float(value), 6) for value in times)
    return Latency(
        median_ms=float(np.median(rounded)),
        p90_ms=float(np.quantile(rounded, 0.9)),
        p99_ms=float(np.quantile(rounded, 0.99)),
        mean_ms=float(np.mean(rounded)),
        throughput_per_s=64_000 / float(np.mean(rounded)),
        samples_ms=rounded,
    )


def make_profile(
    ratio: float = 1.004, half_width: float = 0.012, invalid_because: tuple[str, ...] = (), *, gpu: bool = False
) -> ProfileReport:
    engine = make_engine("sparse", gpu=gpu)

    def speedup(center: float) -> Speedup:
        return Speedup(ratio=center, interval=Interval(low=center - half_width, high=center + half_width, confidence=0.95))

    return ProfileReport(
        dense_engine_sha256=make_engine("dense", gpu=gpu).digest,
        sparse_engine_sha256=engine.digest,
        backend=engine.backend,
        device=engine.device.name,
        dense=make_latency(1.92, 1),
        sparse=make_latency(1.92 / ratio, 2),
        speedup=speedup(ratio),
        control=speedup(0.998),
        sparse_kernels=engine.sparse_kernels,
        conditions=RunConditions(
            batch=64,
            threads=2,
            warmup_count=10,
            round_count=100,
            inferences_per_round=3,
            seed=0,
            details={"clock_resolution_ns": "41", "load_average": "0.8"},
        ),
        invalid_because=invalid_because,
    )


def make_gpu_profile(build_count: int = 3) -> ProfileReport:
    """As of three engines on a GPU, with all that is recorded there."""
    plain = make_profile(1.31, gpu=True)
    pairs: tuple[tuple[EngineRole, EngineRole, float], ...] = (
        ("dense", "sparse", 1.31),
        ("forbidden", "sparse", 1.29),
        ("dense", "forbidden", 1.01),
    )
    ratios = tuple(
        EngineRatio(
            slower=slower,
            faster=faster,
            ratio=ratio,
            interval=Interval(low=ratio - 0.04, high=ratio + 0.04, confidence=0.9),
            conclusion="not told apart" if ratio < 1.04 else "faster",
            of_builds=tuple(ratio + 0.01 * step for step in range(-3, 4)) if build_count > 1 else (ratio,),
        )
        for slower, faster, ratio in pairs
    )
    roles: tuple[EngineRole, ...] = ("dense", "forbidden", "sparse")
    builds = tuple(
        BuildTime(engine=role, number=number, engine_sha256="a" * 64, median_ms=1.5, sparse_kernels="3 of 9 layers")
        for role in roles
        for number in range(1, build_count + 1)
    )
    layers = tuple(
        LayerTime(
            engine=role, name=name, onnx_nodes=nodes, tactic=f"{role}_kernel" if nodes else "", median_ms=ms, share=ms / 1.5
        )
        for role in roles
        for name, nodes, ms in (("conv + relu", ("node_conv", "node_relu"), 1.2), ("copy <format>", (), 0.3))
    )
    reading = GpuReading(
        when="during",
        sm_clock_mhz=1755,
        memory_clock_mhz=2619,
        temperature_c=61,
        power_w=412.0,
        clock_limits=("power cap",),
        other_process_count=None,
    )
    state = GpuState(
        driver_version="580.82",
        highest_sm_clock_mhz=1980,
        highest_memory_clock_mhz=2619,
        power_limit_w=700.0,
        persistence_mode=True,
        mig=None,
        readings=(reading, reading.model_copy(update={"when": "end", "sm_clock_mhz": 1500, "clock_limits": None})),
    )
    return plain.model_copy(
        update={
            "clock": "CUDA events",
            "forbidden": make_latency(1.48, 3),
            "ratios": ratios,
            "builds": builds,
            "end_to_end": EndToEnd(dense=plain.dense, sparse=plain.sparse, speedup=plain.speedup),
            "layers": layers,
            "gpu": state,
        }
    )


def make_certificate() -> Certificate:
    layers = tuple(
        LayerBound(
            layer=name,
            node=f"node_{name}",
            initializer=f"{name}.weight",
            removed_norm=0.9 + 0.1 * index,
            difference_norm=1.0 + 0.1 * index,
            dense_norm=2.0 + 0.1 * index,
            sparse_norm=1.8 + 0.1 * index,
            bias_difference=0.01,
            output_positions=positions,
            method="grid",
        )
        for index, (name, _, _, _, positions) in enumerate(LAYERS)
    )
    assumptions = ("Real numbers are exact; the evaluation is in float64.", "Convolutions pad with zeros.")
    claims = (
        Claim(
            name=LAYERWISE,
            statement="For every input of a masked layer, its output changes by at most the layer's norm times the input's.",
            bound=None,
            unit="l2",
            method="Operator norm of what the mask removed, from the Fourier symbol on a grid.",
            assumptions=assumptions,
            status="useful",
            detail="Nine layers, each with a bound of its own; see the table of norms.",
            measured=None,
            tightness=None,
            certified_count=None,
            sample_count=None,
        ),
        Claim(
            name=HYBRID,
            statement="For each of the samples the outputs of the dense and the sparse network differ by at most the bound.",
            bound=812.0,
            unit="l2",
            method="Recursion through the network, a bound for each sample.",
            assumptions=assumptions,
            status="vacuous",
            detail="The bound is 430 times what was measured and certifies none of the 100 samples.",
            measured=1.89,
            tightness=430.0,
            certified_count=0,
            sample_count=100,
        ),
        Claim(
            name=DATA_FREE,
            statement="For every input up to the largest norm in the data set the outputs differ by at most the bound.",
            bound=7.3e6,
            unit="l2",
            method="Product of norms.",
            assumptions=assumptions,
            status="vacuous",
            detail="Millions of times what was measured: true, but of no use.",
            measured=1.89,
            tightness=3.9e6,
            certified_count=None,
            sample_count=None,
        ),
    )
    return Certificate.sealed(
        dense_sha256=digest("dense"),
        sparse_sha256=digest("sparse"),
        data_sha256=digest("samples"),
        grid=32,
        layers=layers,
        claims=claims,
        smallest=HYBRID,
        unsupported=(),
    )


def make_check(name: str, verdict: str = "pass", **changes: Any) -> Check:
    values: dict[str, Any] = {
        "measured": 3.1e-7,
        "bound": None,
        "tolerance": 2.0**-16,
        "unit": "relative",
        "detail": "largest deviation of 200 samples from the file evaluated in float64, within the chosen tolerance",
    }
    return Check(name=name, verdict=verdict, **{**values, **changes})


def make_survival(lost: str | None = None) -> tuple[LayerSurvival, ...]:
    """Every layer sound at all stages; the one called `lost` has three broken groups in the engine."""
    sound = StageState(state="conforming", group_count=2304)
    broken = StageState(state="broken", violation_count=3, group_count=2304)
    return tuple(
        LayerSurvival(
            layer=name,
            pattern="2:4",
            module=sound,
            onnx=sound,
            converted=sound,
            engine=broken if name == lost else sound,
            lost_at="engine" if name == lost else None,
        )
        for name, *_ in LAYERS
    )


def make_validation(verdict: str = "pass") -> ValidationReport:
    labels = np.arange(597) % 10
    dense, sparse = labels.copy(), labels.copy()
    dense[:3] += 1
    sparse[1:5] += 1
    layers = tuple(
        LayerDeviation(
            layer=name,
            node=f"node_{name}",
            rounding_ratio=0.02 + 0.003 * index,
            deviation=(found := 4.0 * math.exp(0.25 * index)),
            deviation_bound=found * (1.6 + 0.4 * (index % 4)),
            tightness=1.6 + 0.4 * (index % 4),
            verdict="pass",
        )
        for index, (name, *_) in enumerate(LAYERS)
    )
    checks = [
        make_check(
            "pattern of the sparse plan",
            measured=0.0,
            tolerance=0.0,
            unit="layers",
            detail="read back from the plan: all 9 masked layers keep their pattern",
        ),
        make_check("dense engine against float64"),
        make_check("sparse engine against float64"),
        make_check("sparse engine against PyTorch", tolerance=2.0**-15),
        make_check(
            HYBRID,
            measured=1.89,
            bound=812.0,
            tolerance=None,
            unit="l2",
            detail="not violated, but vacuous: the bound is so wide that it certifies no prediction; "
            "the bound is 430 times the measured distance, on 100 samples",
        ),
        make_check(MEASURED_NORMS, "inconclusive", measured=None, detail="nothing is proved here", decides=False),
        make_check(
            "layers outside their bounds",
            measured=0.0,
            tolerance=0.0,
            unit="layers",
            detail="9 of 9 changed layers are within their proved bounds",
        ),
        make_check(
            "accuracy drop",
            measured=0.1675,
            tolerance=0.5,
            unit="percentage points",
            detail="594 of 597 right before, 593 after; meets the gate of 0.5; the interval reaches beyond it",
        ),
    ]
    if verdict != "pass":
        checks.append(
            make_check(
                "changed predictions",
                verdict,
                measured=0.0067,
                tolerance=0.001,
                unit="share of samples",
                detail="4 of 597 predictions changed; more than the gate of 0.001 allows",
            )
        )
    return ValidationReport(
        sparse_engine_sha256=digest("sparse engine"),
        dense_engine_sha256=digest("dense engine"),
        certificate_sha256=make_certificate().digest,
        data_sha256=digest("samples"),
        checks=tuple(checks),
        layers=layers,
        accuracy=compare_accuracy(dense, sparse, labels, 0.95),
        verdict=verdict,
        survival=make_survival(),
        deviation=make_deviation(),
        attribution=make_attribution(),
    )


def make_attribution() -> Attribution:
    """Mostly mask, and a little of everything else."""
    parts = DeviationParts(total=0.2531, mask=0.25, new_values=0.031, sparsity=0.253, quantization=0.012, rounding=3.1e-7)
    return Attribution(
        sample_count=64,
        reference="the dense network before it was converted to the precision of the file",
        layers=tuple(LayerAttribution(layer=name, node=f"node_{name}", output_norm=12.5, parts=parts) for name, *_ in LAYERS),
        output_norm=31.4,
        output=parts,
    )


def make_deviation() -> DeviationQuantile:
    """What 299 samples say about a fresh image."""
    return DeviationQuantile(
        confidence=0.95,
        seed=0,
        sample_count=299,
        needed_count=19,
        quantile=1.31,
        margin=1.853,
        fresh_count=298,
        covered_count=285,
        wide_margin_count=271,
        kept_count=270,
        statement="With probability at least 95 %, a fresh image does not both have a margin above 1.853 and change its class.",
        assumptions=("A fresh image is exchangeable with the samples.", "The samples were drawn at random with seed 0."),
    )
