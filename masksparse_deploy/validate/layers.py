"""The layers of a certificate in both files, each with what a runtime may fuse with it."""

from collections.abc import Collection
from dataclasses import dataclass

from masksparse_deploy.core.artifacts.certificate import Certificate, LayerBound
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.positions import position_masks
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.graph.twins import masked_layers
from masksparse_deploy.validate.units import Unit, unit_of

__all__ = ["LayerPair", "comparable", "exposed_tensors", "layer_pairs"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPair:
    """A layer of the certificate in the sparse file, its twin in the dense file, and what is proved about the two."""

    bound: LayerBound
    dense: Unit
    sparse: Unit

    @property
    def tensors(self) -> tuple[str, ...]:
        """What must be known of the engine: what the layer reads, what is added behind it, and what comes out."""
        return (self.sparse.input, *self.sparse.others, self.sparse.output)


def layer_pairs(dense: Graph, sparse: Graph, certificate: Certificate) -> tuple[LayerPair, ...]:
    """Find the certificate's layers in both files.

    Raises:
        ArtifactError: a layer of the certificate is missing in one of the files, or a changed layer in the certificate.
    """
    in_dense = {layer.node.name: layer for layer in weighted_layers(dense)}
    in_sparse = {layer.node.name: layer for layer in weighted_layers(sparse)}
    pairs = []
    for bound in certificate.layers:
        for where, found in (("dense", in_dense), ("sparse", in_sparse)):
            if bound.node not in found:
                raise ArtifactError(
                    f"the certificate bounds the layer {bound.node}, which the {where} ONNX file does not have; "
                    "run 'masksparse certify' again on these files"
                )
        units = unit_of(dense, in_dense[bound.node]), unit_of(sparse, in_sparse[bound.node])
        pairs.append(LayerPair(bound=bound, dense=units[0], sparse=units[1]))
    bounded = {bound.node for bound in certificate.layers}
    masked = [masked.conv.name for masked in position_masks(sparse).values()]
    for name in [layer.node.name for _, layer in masked_layers(dense, sparse)] + masked:
        if name not in bounded:
            raise ArtifactError(
                f"the certificate has no bound for the layer {name}, which differs between the two ONNX files; "
                "run 'masksparse certify' again on these files"
            )
    return tuple(pairs)


def comparable(pairs: tuple[LayerPair, ...], built_from: Graph, elsewhere: Collection[str] = ()) -> tuple[LayerPair, ...]:
    """The layers whose tensors can be known: those that the engine's file has, and those `elsewhere` in it, as rows."""
    known = {*built_from.inputs, *(name for node in built_from.nodes for name in node.outputs), *elsewhere}
    return tuple(pair for pair in pairs if known.issuperset(pair.tensors))


def exposed_tensors(pairs: tuple[LayerPair, ...], graph: Graph) -> tuple[str, ...]:
    """Inputs and outputs of the layers that the engine must return; the model's own input is known without that."""
    names = dict.fromkeys(name for pair in pairs for name in pair.tensors)
    return tuple(name for name in names if name not in graph.inputs)
