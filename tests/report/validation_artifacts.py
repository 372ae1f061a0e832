"""Made-up certificates, validations and what they hold, for looking at reports."""

import math
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.attribution import Attribution, DeviationParts, LayerAttribution
from masksparse_deploy.core.artifacts.certificate import (
    DATA_FREE,
    HYBRID,
    LAYERWISE,
    MEASURED_NORMS,
    Certificate,
    Claim,
    LayerBound,
)
from masksparse_deploy.core.artifacts.survival import LayerSurvival, StageState
from masksparse_deploy.core.artifacts.validation import Check, DeviationQuantile, LayerDeviation, ValidationReport
from masksparse_deploy.validate.intervals import compare_accuracy
from tests.report.made_up import LAYERS, digest


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
