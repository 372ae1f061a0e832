"""What may be behind a dense tactic of an eligible layer; guesses are marked as such.

The rules of thumb come from NVIDIA's answers in its issue tracker (sparse convolutions win with more than about 256 input and
output channels, a 3x3 kernel counts nine times as many), and from names of kernels in the library of TensorRT 8.6.0 and in
logs.
"""

import re
from collections.abc import Iterator

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.sparse_tactics import Hint
from masksparse_deploy.engine.why_not_sparse.file_facts import FileLayer
from masksparse_deploy.graph.annotations import FLOAT_OUTPUT_REASON

__all__ = ["hints"]

_SMALL = 256
_SMALL_BATCH = 8
_HOPPER = "9.0"
_NO_MATRIX_PRODUCTS = re.compile(r"^8\.")


def hints(layer: FileLayer, found: EngineLayer | None, engine: EngineArtifact) -> Iterator[Hint]:
    """What is known or seen elsewhere to keep a layer like this one from a sparse tactic, the surest first.

    Args:
        layer: an eligible layer of the file.
        found: the engine's layer that computes it.
        engine: what it is in.
    """
    quantized = layer.row.dtype in ("int8", "uint8")
    if quantized and found is not None and any(found.outputs) and not any("int8" in text.lower() for text in found.outputs):
        reason = "" if layer.node is None else layer.node.metadata.get(FLOAT_OUTPUT_REASON, "")
        because = f" ({reason})" if reason else ""
        text = f"its output is not INT8{because}: sparse INT8 tactics were seen where it was; add a quantizer behind the layer"
        yield Hint(text=text, evidence="rule of thumb")
    compatibility = str(engine.options.get("hardware_compatibility", "none"))
    if compatibility != "none":
        text = f"the engine must run on other GPUs too ({compatibility}), which leaves tactics out; build without that"
        yield Hint(text=text, evidence="documented")
    yield from (Hint(text=text, evidence="rule of thumb") for text in _guesses(layer, engine, quantized))


def _guesses(layer: FileLayer, engine: EngineArtifact, quantized: bool) -> Iterator[str]:
    shape = layer.row.shape
    if len(shape) > 1 and min(shape[:2]) < _SMALL:
        yield f"fewer than {_SMALL} input or output channels ({min(shape[:2])}): sparse tactics rarely win there"
    if len(shape) == 4 and shape[2:] == (1, 1):
        yield "a 1x1 kernel: it gains less than a 3x3 one, which sums over nine times as much"
    if layer.node is not None and any(step > 1 for step in layer.node.attributes.get("strides", ())):
        yield "a stride above 1: some sparse tactics are for stride 1 only (u1v1 in their names)"
    batch = engine.options.get("batch")
    if isinstance(batch, int) and batch < _SMALL_BATCH:
        yield f"a batch of {batch}: memory may limit the layer, not arithmetic; try a larger batch"
    is_hopper = engine.device.details.get("compute_capability") == _HOPPER
    if is_hopper and not quantized and layer.row.dtype == "float16":
        yield "on Hopper few sparse tactics for FP16 were seen (one tile in TensorRT 8.6), but many for INT8: try INT8"
    if layer.row.op in ("MatMul", "Gemm") and _NO_MATRIX_PRODUCTS.match(engine.versions.get("tensorrt", "")):
        yield "a matrix product: no sparse tactics were seen for them before TensorRT 10"
