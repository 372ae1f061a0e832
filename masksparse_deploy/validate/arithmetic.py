"""In which arithmetic a kernel computes: what the file and the kernel's name tell, and how much it may round."""

from collections.abc import Mapping
from dataclasses import dataclass

from masksparse_deploy.engine.tactic_names import read_tactic

__all__ = ["ARITHMETICS", "Arithmetic", "Kernel", "kernel_of"]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How far single operations round; units are relative to the result, spacings absolute, where numbers are equally spaced.

    Attributes:
        name: in words.
        sum_unit: of one addition, and of one product where products are not exact; 0 for integers.
        sum_spacing: of a sum near zero, or what is flushed to zero.
        largest_sum: above it a sum is infinite.
        operand_unit: of what is read, before it is multiplied.
        operand_spacing: likewise near zero.
        stored_unit: of the result as it is handed on.
        stored_spacing: likewise near zero.
    """

    name: str
    sum_unit: float = 2.0**-24
    sum_spacing: float = 2.0**-126
    largest_sum: float = 3.4e38
    operand_unit: float = 0.0
    operand_spacing: float = 0.0
    stored_unit: float = 0.0
    stored_spacing: float = 0.0


# Tensor cores align k terms and the sum so far with the largest of them, and cut off what does not fit 24 bits (Fasi, Higham,
# Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, 2021): n terms lose n + n / k times 2^-23 of the sum of their
# magnitudes at most, no more than n times 2^-22. In FP16 a block is rounded once, by 2^-11; each term is allowed twice that.
_TENSOR_CORE_FP32 = 2.0**-22
_TENSOR_CORE_FP16 = 2.0**-10
# TF32 keeps 10 bits behind the leading one; how the others are lost is not documented, so that they may be cut off.
_TF32 = 2.0**-10
_FP16 = {"stored_unit": 2.0**-11, "stored_spacing": 2.0**-25}
_BF16 = {"stored_unit": 2.0**-8, "stored_spacing": 2.0**-126}
ARITHMETICS: Mapping[str, Arithmetic] = {
    arithmetic.name: arithmetic
    for arithmetic in (
        Arithmetic(name="fp32"),
        Arithmetic(name="tf32", sum_unit=_TENSOR_CORE_FP32, operand_unit=_TF32, operand_spacing=2.0**-126),
        Arithmetic(name="fp16", **_FP16),
        Arithmetic(name="fp16 on tensor cores", sum_unit=_TENSOR_CORE_FP32, **_FP16),
        # between numbers below 2^-14 lie 2^-24, all of which truncation may lose
        Arithmetic(name="fp16 sums", sum_unit=_TENSOR_CORE_FP16, sum_spacing=2.0**-24, largest_sum=65504.0, **_FP16),
        Arithmetic(name="bf16", **_BF16),
        Arithmetic(name="bf16 on tensor cores", sum_unit=_TENSOR_CORE_FP32, **_BF16),
        Arithmetic(name="int8", sum_unit=0.0),
        Arithmetic(name="int8 in fp32"),
    )
}

# Tactics that transform inputs and weights first; no bound here covers what they round.
_TRANSFORMING = ("winograd", "fft")
# Operators of ONNX Runtime that add up integers, in lower case; where no name tells, the bound of FP32 sums holds for both.
_INTEGER = ("qlinearconv", "qlinearmatmul", "qgemm")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of the engine: its arithmetic, and why a result beyond the bound of that arithmetic would prove nothing.

    `arithmetic` is None where no bound is there at all; `doubt` is then the reason.
    """

    tactic: str
    arithmetic: Arithmetic | None
    doubt: str | None = None


def kernel_of(tactic: str, precision: str, *, tf32: bool = False) -> Kernel:
    """What is known of a kernel.

    Args:
        tactic: its name in the engine; empty where the engine names none.
        precision: of the layer in the file: "fp32", "fp16", "bf16" or "int8".
        tf32: whether the engine was built with leave to use TF32 for FP32.
    """
    name = tactic.lower()
    read = read_tactic(tactic)
    arithmetic, doubt = _arithmetic(name, precision, read.sums, tf32=tf32)
    transforming = next((part for part in _TRANSFORMING if part in name), None)
    operands = read.operands or precision
    if transforming is not None:
        doubt = f"tactic {tactic} is a {transforming} algorithm, which the bound does not cover"
    elif operands != precision:
        doubt = f"tactic {tactic} computes in {operands}, the layer is {precision} in the file"
    return Kernel(tactic=tactic, arithmetic=arithmetic, doubt=doubt)


def _arithmetic(name: str, precision: str, sums: str, *, tf32: bool) -> tuple[Arithmetic | None, str | None]:
    if precision == "fp32":
        is_tf32 = "tf32" in name or (tf32 and "_f32f32_f32" not in name)
        return ARITHMETICS["tf32" if is_tf32 else "fp32"], None
    if precision in ("fp16", "bf16"):
        if sums == "fp32":
            return ARITHMETICS[f"{precision} on tensor cores"], None
        if sums == "fp16" and precision == "fp16":
            return ARITHMETICS["fp16 sums"], None
        doubt = f"tactic {name or 'without a name'} does not tell whether it keeps its sums in fp32, as the bound demands"
        return ARITHMETICS[precision], doubt
    if precision == "int8":
        is_integer = sums == "int32" or any(part in name for part in _INTEGER)
        return ARITHMETICS["int8" if is_integer else "int8 in fp32"], None
    return None, f"the layer is {precision} in the file, bounds are there for fp32, fp16, bf16 and int8"
