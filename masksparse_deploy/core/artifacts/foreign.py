"""The report of an import: how the zeros of a model made elsewhere are grouped, and which of them can be used."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["Convention", "Grouping", "ImportReport", "ImportedLayer", "Tool", "Zeros"]

Tool = Literal["plain zeros", "ASP", "Model-Optimizer", "torch.nn.utils.prune", "torch.ao.pruning"]
# How a tool cuts a weight into groups. "kernel taps" is the order in memory, (in_channels, kernel_h, kernel_w);
# "channels last" is (kernel_h, kernel_w, in_channels).
Convention = Literal["input channels", "output channels", "kernel taps", "channels last"]
Zeros = Literal["input channels", "output channels", "kernel taps", "channels last", "unstructured", "dense"]


class Grouping(Record):
    """`conforming_count` of `group_count` groups cut by `convention` keep at most N of M."""

    convention: Convention
    pattern: str
    group_count: int
    conforming_count: int


class ImportedLayer(Record):
    """One layer with weights.

    `zeros` says along what the groups run; `pattern` is the one found there, None for "unstructured" and "dense".
    `groupings` are counted for the pattern in question, 2:4 unless another was found or asked for. `usable` layers carry a
    mask in the mask set, whose digest is `mask_sha256`. `density` is the fraction of weights kept. `mac_count` counts
    multiply-accumulates for one image, zeros included.
    """

    name: str
    weight_name: str
    shape: tuple[int, ...]
    zeros: Zeros
    pattern: str | None
    usable: bool
    why: str
    density: float
    groupings: tuple[Grouping, ...]
    mask_sha256: str | None
    weight_count: int
    mac_count: int


class ImportReport(Document):
    """What a foreign checkpoint holds.

    `asked_pattern` is the only pattern looked for, None if any was. `weights_sha256` is the digest of weights.safetensors;
    `mask_set_sha256` is None where no layer is usable, and there is no mask set then. `amdahl_limit` is the speedup of the
    whole network if every usable layer ran twice as fast, which is what sparse kernels give at best, also for 1:4.
    """

    kind: ClassVar[str] = "import report"

    tool: Tool
    asked_pattern: str | None
    checkpoint_sha256: str
    weights_sha256: str
    mask_set_sha256: str | None
    layers: tuple[ImportedLayer, ...]
    amdahl_limit: float
