"""Outputs of the engines held against references: float64, PyTorch, and the certificate's end-to-end bounds."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from masksparse_deploy.core.artifacts.certificate import Claim
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import require_file

__all__ = [
    "check_claim",
    "check_finite",
    "check_outputs",
    "missing_reference",
    "probe_tolerance",
    "read_probe",
    "reference_tolerance",
    "row_norms",
]

# Chosen, not proved. FP32: 256 units of rounding; on the digits sample rounding alone gives 4e-7, a fortieth of it, and any
# single layer with weights rounded to FP16 gives at least 2.7e-5, nearly twice as much. FP16 and BF16: 16 units; the digits
# give 6e-4 against PyTorch in FP16, a thirteenth. INT8: the digits give 1.5e-2 where values fall on other levels, a quarter.
_TOLERANCES = {"fp32": 2.0**-16, "fp16": 2.0**-7, "bf16": 2.0**-4, "int8": 2.0**-4}

Array = npt.NDArray[Any]

# Ratios from here on are shown as whole numbers.
_WHOLE_FROM = 100

_PROBE_TENSORS = ("images", "dense_outputs", "sparse_outputs")


def read_probe(path: Path) -> dict[str, Array]:
    """The probe of the bake stage: "images", and PyTorch's "dense_outputs" and "sparse_outputs" for them, all float32.

    Raises:
        UsageError: there is no such file.
        ArtifactError: damaged, a tensor is missing, or one holds NaN or infinite values.
    """
    try:
        tensors: dict[str, Array] = load_safetensors(require_file(path, "probe").read_bytes())
    except SafetensorError as error:
        raise ArtifactError(f"probe {path} is damaged ({error}); run 'masksparse bake' again") from error
    missing = [name for name in _PROBE_TENSORS if name not in tensors]
    if missing:
        raise ArtifactError(f"probe {path} has no tensor {missing[0]!r}; run 'masksparse bake' again")
    unfit = [name for name in _PROBE_TENSORS if not np.isfinite(tensors[name]).all()]
    if unfit:
        raise ArtifactError(f"probe {path} holds NaN or infinite values in {unfit[0]!r}; run 'masksparse bake' again")
    return tensors


def row_norms(outputs: Array) -> npt.NDArray[np.float64]:
    """The l2 norm of every sample's outputs, float64 (count,)."""
    return np.asarray(np.linalg.norm(outputs.astype(np.float64).reshape(len(outputs), -1), axis=1))


def check_finite(dense: Array, sparse: Array) -> Check:
    """Whether both engines give finite outputs only."""
    count = int((~np.isfinite(dense)).sum() + (~np.isfinite(sparse)).sum())
    return Check(
        name="finite outputs",
        measured=float(count),
        bound=None,
        tolerance=0.0,
        unit="values",
        verdict="fail" if count else "pass",
        detail=f"{count} output values are NaN or infinite" if count else "no output of either engine is NaN or infinite",
    )


def reference_tolerance(precision: str) -> float:
    """How far an engine may be from the float64 values of its file: relative, chosen, not proved.

    Args:
        precision: as `EngineArtifact.precision`; of several joined by "+" the coarsest counts.
    """
    return max(_TOLERANCES.get(part, _TOLERANCES["fp32"]) for part in precision.split("+"))


def probe_tolerance(precision: str) -> float:
    """The same against PyTorch in float32, where the reference rounds too."""
    return 2 * reference_tolerance(precision)


def check_outputs(name: str, outputs: Array, reference: Array, *, against: str, tolerance: float) -> Check:
    """Compare outputs of an engine with reference outputs for the same samples.

    Measured is the largest l2 deviation of a sample, relative to the root mean square of the reference's norms.

    Args:
        name: of the check.
        outputs: (count, ...).
        reference: (count, ...), finite.
        against: what the reference is, in words.
        tolerance: chosen, not proved.
    """
    fault = ""
    if outputs.shape != reference.shape:
        fault = f"the engine's outputs have the shape {outputs.shape}, {against} has {reference.shape}"
    elif not np.isfinite(outputs).all():
        fault = f"the engine's outputs hold NaN or infinite values, {against} has none"
    if fault:
        return Check(name=name, measured=None, bound=None, tolerance=tolerance, unit="relative", verdict="fail", detail=fault)
    scale = float(np.sqrt(np.mean(row_norms(reference) ** 2)))
    largest = float(row_norms(outputs.astype(np.float64) - reference).max())
    measured = largest / scale if scale > 0 else largest
    within = measured <= tolerance
    relation = "within" if within else "beyond"
    return Check(
        name=name,
        measured=measured,
        bound=None,
        tolerance=tolerance,
        unit="relative",
        verdict="pass" if within else "fail",
        detail=f"largest deviation of {len(outputs)} samples from {against}, {relation} the chosen tolerance (not a bound)",
    )


def missing_reference(name: str, reason: str, *, decides: bool) -> Check:
    """A comparison that could not be made, and why; with `decides` it stands in the way of a pass."""
    return Check(
        name=name,
        measured=None,
        bound=None,
        tolerance=None,
        unit="relative",
        verdict="inconclusive",
        detail=reason,
        decides=decides,
    )


def check_claim(claim: Claim, bound: float, measured: float, slack: float, count: int) -> Check:
    """Compare the measured distance of the two engines with an end-to-end claim of the certificate.

    A claim is about exact arithmetic. By the triangle inequality the engines may be further apart by how far each of them is
    from the exact outputs; `slack` is the sum of the two, measured. A vacuous claim is checked like any other: its bound
    certifies nothing, but a network beyond it would show an error.

    Args:
        claim: the statement.
        bound: what it proves.
        measured: largest ||dense - sparse|| over the samples, l2.
        slack: largest sum over the samples of the engines' distances from their float64 references.
        count: samples measured.
    """
    allowed = bound + slack
    within = measured <= allowed
    times = f"the bound is {_ratio(allowed / measured)} times the measured distance" if measured > 0 else "no distance measured"
    if not within:
        detail = f"the engines are further apart than the proved bound allows, on {count} samples"
    elif claim.status == "vacuous":
        detail = f"not violated, but vacuous: the bound is so wide that it certifies no prediction; {times}, on {count} samples"
    else:
        detail = f"{times}, on {count} samples"
    return Check(
        name=claim.name,
        measured=measured,
        bound=allowed,
        tolerance=None,
        unit=claim.unit,
        verdict="pass" if within else "fail",
        detail=detail,
    )


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= _WHOLE_FROM else f"{value:.3g}"
