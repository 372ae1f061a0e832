"""Certificates for PyTorch networks: certify knows files and no PyTorch, bake has the exporter, and here the two are joined."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.certify.pairing import pair_graphs
from masksparse_deploy.certify.run import certify_pair
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.config import BakeOptions, CertifyOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.reader import parse_graph

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["certify_modules"]

_NAMES = ("the dense network", "the sparse network")
_IMAGE_AXES = 4


def certify_modules(
    dense: "nn.Module | ExportedProgram",
    sparse: "nn.Module | ExportedProgram",
    images: npt.NDArray[np.float32],
    options: CertifyOptions | None = None,
    *,
    opset: int | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Bound how far one PyTorch network can be from another with the same graph; both are exported to ONNX in memory.

    Args:
        dense: a module, a `torch.fx.GraphModule` or an `ExportedProgram` with a free batch size.
        sparse: the same network with other weights, such as masked ones. Digests in the certificate are those of the two ONNX
            files, which are not written.
        images: float32 (count, channels, height, width); the first `options.sample_count` are propagated, the largest norm of
            all is the radius of the data-free claim.
        options: number of samples and the frequency grid; the defaults if None.
        opset: the ONNX operator set to go through; the default of the bake stage if None.
        progress: called as the work goes on.

    Raises:
        MachineError: torch or onnxscript is missing.
        UsageError: a network cannot be exported, or the images don't fit it.
        ArtifactError: the two are not the same graph, or their weights are not finite.
    """
    if images.ndim != _IMAGE_AXES:
        raise UsageError(f"images have the shape {images.shape}; give float32 images (count, channels, height, width)")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    opset = BakeOptions().opset if opset is None else opset
    files = [export_onnx(_module(network), shape, opset=opset) for network in (dense, sparse)]
    graphs = [parse_graph(data, name=name) for data, name in zip(files, _NAMES, strict=True)]
    try:
        pair = pair_graphs(*graphs)
    except ArtifactError as error:
        raise ArtifactError(f"the two networks {error}") from error
    # there are no labels, and none are needed
    samples = Samples(images, np.zeros(len(images), dtype=np.int64))
    return certify_pair(pair, samples, options or CertifyOptions(), names=_NAMES, progress=progress)


def _module(network: Any) -> "nn.Module":
    """The module of an exported program, which runs its graph; any other network as it is."""
    exporting = require("torch.export", needed_for="certifying PyTorch networks")
    if not isinstance(network, exporting.ExportedProgram):
        return network  # type: ignore[no-any-return]
    module: nn.Module = network.module()
    # such a module refuses to change its mode, which was fixed when it was exported, and has the flag of training set
    vars(module).update(training=False, eval=lambda: module)
    return module
