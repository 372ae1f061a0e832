"""What a kernel's name tells: for which architecture, what it multiplies, in what it adds up, and whether it skips zeros.

Names are not documented. The rules here were read off names in the libraries and logs of TensorRT, cuDNN and CUTLASS; a name
that follows none of them leaves the fields empty.
"""

import functools
import re
from dataclasses import dataclass

__all__ = ["TacticName", "read_tactic"]

_SPARSE = re.compile(r"spars|sptensor|spmma")
# Of "f16f16_f16f32_f32": read and written, multiplied and added up, then the type behind the sum.
_INPUT_OUTPUT = re.compile(r"_(tf32|f32|f16|bf16|i8)(f32|f16|bf16|i8)_(?:tf32|f32|f16|bf16|i8)(?:f32|f16|i32)_")
_TYPES = re.compile(r"_(tf32|f32|f16|bf16|i8)(f32|f16|i32)_(?:f32|f16|bf16|i8)(?:_|$)")
# "s16816", as in ampere_fp16_s16816gemm: tensor-core instructions with sums in single or half precision, or integers.
_INSTRUCTION = re.compile(r"(?:^|_)([shi])(?:884|1688|16816|8816|16832|16864)")
_INSTRUCTION_SUMS = {"s": "fp32", "h": "fp16", "i": "int32"}
# Parts of names that tell in what a kernel multiplies.
_OPERANDS = {"tf32": "fp32", "bf16": "bf16", "fp16": "fp16", "half": "fp16", "int8": "int8"}
_LONG = {"f32": "fp32", "tf32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "i32": "int32"}
_ARCHITECTURE = re.compile(r"^(sm\d+|maxwell|volta|turing|ampere|hopper)_")
_TILE = re.compile(r"tilesize(\d+x\d+(?:x\d+)?)")
# Parts of names -> how the sums are arranged; the first that occurs.
_KINDS = {
    "winograd": "winograd",
    "fft": "fft",
    "implicit_gemm": "implicit gemm",
    "gemm": "gemm",
    "fprop": "convolution",
    "conv": "convolution",
}


@dataclass(frozen=True, kw_only=True)
class TacticName:
    """A kernel's name, taken apart; fields are empty where the name does not tell.

    Attributes:
        architecture: as "sm80" or "ampere"; a kernel also runs on later ones.
        kind: "implicit gemm", "gemm", "convolution", "winograd" or "fft".
        is_sparse: whether it multiplies by 2:4 weights without their zeros.
        operands: what is multiplied: "fp32" (TF32 too), "fp16", "bf16" or "int8".
        sums: what is added up in: "fp32", "fp16" or "int32".
        output: what is written.
        tile: as "128x64x64".
    """

    architecture: str
    kind: str
    is_sparse: bool
    operands: str
    sums: str
    output: str
    tile: str


@functools.lru_cache(maxsize=4096)
def read_tactic(tactic: str) -> TacticName:
    """Take a kernel's name apart, in any case of letters."""
    name = tactic.lower()
    types, instruction, ends = _TYPES.search(name), _INSTRUCTION.search(name), _INPUT_OUTPUT.search(name)
    architecture, tile = _ARCHITECTURE.search(name), _TILE.search(name)
    operands = _LONG[types.group(1)] if types else next((found for part, found in _OPERANDS.items() if part in name), "")
    sums = _LONG[types.group(2)] if types else _INSTRUCTION_SUMS[instruction.group(1)] if instruction else ""
    return TacticName(
        architecture=architecture.group(1) if architecture else "",
        kind=next((kind for part, kind in _KINDS.items() if part in name), ""),
        is_sparse=_SPARSE.search(name) is not None,
        operands=operands,
        sums=sums,
        output=_LONG[ends.group(2)] if ends else "",
        tile=tile.group(1) if tile else "",
    )
