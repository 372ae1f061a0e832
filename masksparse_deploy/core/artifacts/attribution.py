"""What the deviation of the sparse engine from the dense network is made of, layer by layer and at the output."""

from masksparse_deploy.core.artifacts.document import Record

__all__ = ["PARTS", "Attribution", "DeviationParts", "LayerAttribution"]

# In the order in which the networks between the dense reference and the engine follow one another.
PARTS = ("mask", "new_values", "quantization", "rounding")


class DeviationParts(Record):
    """A deviation and the steps that lead to it, each an l2 norm over all samples relative to that of the dense reference.

    `mask`: weights that the mask removed; `new_values`: re-estimated statistics and new weights; `quantization`: weights
    rounded to the precision of the file, and activations put on the file's grids; `rounding`: what the engine's kernels do
    otherwise than the file evaluated in float64. The four are steps of a telescoping sum in this order, so `total` is at most
    their sum; another order would give other parts. `sparsity` are the first two as one step: new values are there to undo what
    the mask does, so that it may be far less than either.
    """

    total: float
    mask: float
    new_values: float
    sparsity: float
    quantization: float
    rounding: float


class LayerAttribution(Record):
    """One changed layer on the engine's own input (teacher forced); `output_norm` is the root mean square over the samples."""

    layer: str
    node: str
    output_norm: float
    parts: DeviationParts


class Attribution(Record):
    """Parts of every changed layer, and of the network's output, measured on the first `sample_count` samples.

    `reference` says in words what the dense reference is. `output` is None where a network between the two cannot be
    evaluated; `output_obstacle` says why.
    """

    sample_count: int
    reference: str
    layers: tuple[LayerAttribution, ...]
    output_norm: float | None = None
    output: DeviationParts | None = None
    output_obstacle: str = ""
