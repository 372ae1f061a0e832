"""The report of a pre-flight: what NVIDIA's parser reads in an ONNX file."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["ParserError", "PreflightLayer", "PreflightReport"]


class ParserError(Record):
    """What the parser or the builder refuses; `node` and `op` are empty where it is not about one operator."""

    node: str
    op: str
    message: str


class PreflightLayer(Record):
    """One convolution or matrix product as the parser sees it.

    `node` is the ONNX node, `kind` the parser's layer ("convolution", "deconvolution", "matrix product"), `shape` and `dtype`
    those of the weight it multiplies by and stores. `violation_count` of `group_count` groups along the input channels keep
    more weights than `pattern` allows; `claimed` says that the file states that pattern, otherwise it is the hardware's.
    `conforming` is None where the parser shows no weight. `agrees`: the weight is the file's as read without the parser; None
    where one of the two shows none and nothing follows from that. `detail` is a sentence for people.
    """

    node: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pattern: str
    claimed: bool
    group_count: int
    violation_count: int
    conforming: bool | None
    agrees: bool | None
    detail: str


class PreflightReport(Document):
    """Whether NVIDIA's parser reads the file, and whether its view of the weights holds what the file claims.

    `built` is None where no build was asked for. `ok` is True only if everything was parsed (and built), every claim of
    sparsity holds for the weights that the parser shows, and no weight differs from the file's. It says nothing about speed.
    """

    kind: ClassVar[str] = "preflight report"

    file_sha256: str
    versions: dict[str, str]
    parsed: bool
    built: bool | None
    errors: tuple[ParserError, ...]
    warnings: tuple[str, ...]
    layers: tuple[PreflightLayer, ...]
    ok: bool
