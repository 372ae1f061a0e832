"""The reports of the bake stage and of the linter."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record, SkippedLayer
from masksparse_deploy.core.artifacts.survival import Checkpoint

__all__ = [
    "BakeReport",
    "BakedLayer",
    "BakedPositions",
    "LayerRange",
    "LintLayer",
    "LintPositions",
    "LintReport",
    "LintState",
    "PaddedLayer",
]

LintState = Literal["conforming", "eligible", "not eligible", "wrong axis", "broken claim"]


class BakedLayer(Record):
    """A layer whose zeros are in the ONNX file.

    `layer` is the module name, `weight_name` the parameter's, `node` and `initializer` the names in the ONNX graph.
    `violation_count` of `group_count` groups keep more than N weights, as counted in the written file, with a transposable
    pattern over the groups of both axes; `checkpoints` are the same counts at each stage on the way there.
    """

    layer: str
    weight_name: str
    node: str
    initializer: str
    shape: tuple[int, ...]
    pattern: str
    group_axis: int
    density: float
    group_count: int
    violation_count: int
    mask_sha256: str
    checkpoints: tuple[Checkpoint, ...] = ()


class LayerRange(Record):
    """What one layer's numbers lose in a lower precision than FP32.

    `weight_overflow_count` weights are beyond the precision's largest finite number; `weight_flushed_count` of the
    `weight_nonzero_count` weights that are not zero become zero. The same of the layer's outputs on the
    calibration images, as FP32 computes them: the largest magnitude, how many lie beyond, and the share of nonzero ones that
    become zero; None where they were not measured.
    """

    node: str
    weight: str
    weight_largest: float
    weight_nonzero_count: int
    weight_overflow_count: int
    weight_flushed_count: int
    output_largest: float | None
    output_overflow_count: int | None
    output_flushed_share: float | None


class PaddedLayer(Record):
    """A layer that got channels of zeros, so that masked layers have full groups; what that costs, zeros included.

    `channels` and `padded_channels` are its input channels, in the weight and in the padded weight. The zeros it reads there
    are appended at run time ("pad node"), or computed for free by the layers before ("producer"); one that only computes
    zeros for others, and reads none, has "outputs only". `extra_mac_count` is for one sample, None where the file does not
    tell the shapes.
    """

    node: str
    weight: str
    channels: int
    padded_channels: int
    extra_weight_count: int
    extra_mac_count: int | None
    by: Literal["pad node", "producer", "outputs only"]


class BakedPositions(Record):
    """A convolution of whose output only `kept_count` of `height` x `width` positions are computed.

    `layer` is the module's name, `node` the convolution's in the ONNX graph, `where` that of the operator that puts the
    constants in. `keep` holds the mask, row by row in hexadecimal: its bits, 1 where a position is computed, eight to a byte
    from the highest, filled up with 0 at the end. `mac_count` is the convolution's for one sample, were all positions computed.
    """

    layer: str
    node: str
    where: str
    height: int
    width: int
    kept_count: int
    mask_sha256: str
    keep: str
    mac_count: int | None

    @property
    def position_count(self) -> int:
        """How many positions the output has."""
        return self.height * self.width

    @property
    def dropped_mac_count(self) -> int | None:
        """How many multiply-accumulates are left out for one sample; None where the file does not tell the shapes."""
        if self.mac_count is None:
            return None
        return self.mac_count // self.position_count * (self.position_count - self.kept_count)


class BakeReport(Document):
    """The dense twin, the sparse file and what is in them.

    `origin`: what was baked, a PyTorch model or an ONNX file. `probe_sha256` is None where there is no PyTorch model to
    compare with.

    `statistics_updated`: batch-norm statistics were re-estimated, so that folded weights also differ by a factor for
    each output channel and the biases differ. `weights_updated`: the masks came with new weights, which the sparse file has
    and its dense twin has not. Where both are False the two files differ in masked values and annotations only, and with INT8
    in the scales, which each file has of its own.

    `positions` are the convolutions of the sparse file of which some output positions are not computed.

    `padded` are the layers of both files that got channels of zeros, because some masked layer has groups that are not full.

    `dense_fp32_sha256` and `sparse_fp32_sha256` are of both networks before their conversion, where they were written beside
    the files of a reduced precision.

    `ranges` tell what reduced precision costs each layer of the sparse file, measured on the images with the fingerprint
    `calibration_sha256` (None: without images); `remarks` are what of it a user should know. Both are empty with FP32.
    """

    kind: ClassVar[str] = "bake report"
    version: ClassVar[int] = 2

    origin: Literal["pytorch", "onnx"] = "pytorch"
    dense_sha256: str
    sparse_sha256: str
    mask_set_sha256: str
    probe_sha256: str | None
    opset: int
    precision: str
    calibration_sha256: str | None = None
    statistics_updated: bool
    weights_updated: bool = False
    layers: tuple[BakedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    positions: tuple[BakedPositions, ...] = ()
    padded: tuple[PaddedLayer, ...] = ()
    dense_fp32_sha256: str | None = None
    sparse_fp32_sha256: str | None = None
    ranges: tuple[LayerRange, ...] = ()
    remarks: tuple[str, ...] = ()


class LintLayer(Record):
    """One layer with weights: its state, the reason in words, and how much of the file's arithmetic it is.

    `weight` is the stored constant, `route` the operators between it and the layer, `dtype` what the layer multiplies by
    ("int8" for a weight that is dequantized; empty where the weight is not read). `where` names the body of an If, Loop or
    Scan that the layer is in, empty for the main graph. `mac_count` is None where the shapes in the file do not tell;
    `mac_share` is of the layers where they do. `group_count` and `violation_count` are along the input channels, and of a layer
    annotated with a transposable pattern along the output channels too. `transposable` tells of a conforming layer whether it
    conforms along its output channels too; None for others. `drift` says how the weights differ from their annotation, also
    where that breaks no claim.
    """

    node: str
    op: str
    where: str
    weight: str
    route: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    state: LintState
    why: str
    drift: tuple[str, ...]
    density: float
    group_count: int
    violation_count: int
    transposable: bool | None = None
    mac_count: int | None
    mac_share: float | None


class LintPositions(Record):
    """A convolution whose positions are masked: how many of `position_count` are computed, or why its annotation is wrong.

    `node` is the annotated operator behind the `convolution` ("" where there is none), `layer` the mask's layer as it says.
    `mac_share` is what the dropped positions are of the file's multiply-accumulates; None where the shapes in the file do not
    tell.
    """

    node: str
    convolution: str
    layer: str
    position_count: int
    kept_count: int
    state: Literal["conforming", "broken claim"]
    why: str
    mac_share: float | None


class LintReport(Document):
    """What is sparse in an ONNX file, what could be and what never will be; `ok` is False if a claim is broken.

    `positions` are the convolutions of which some output positions are not computed.

    `findings` are claims of the file as a whole that do not hold, and sparse layers that are not transposable where the user
    demanded it; `remarks` what else should be known about all its layers.
    `amdahl_limit` is the whole file's speedup if every conforming layer ran 1/density times as fast, and dropped positions took
    no time; None if unknown.
    """

    kind: ClassVar[str] = "lint report"
    version: ClassVar[int] = 2

    file_sha256: str
    layers: tuple[LintLayer, ...]
    positions: tuple[LintPositions, ...] = ()
    findings: tuple[str, ...]
    remarks: tuple[str, ...]
    ok: bool
    amdahl_limit: float | None
