"""From a network to the arrangement of its channels: export it to ATen operators and follow the channels through them."""

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.permutation.layout import Arrangement
from masksparse_deploy.learn.permutation.operators import propagate
from masksparse_deploy.learn.permutation.trace import Trace

__all__ = ["arrange_channels"]


def arrange_channels(model: nn.Module, image_shape: tuple[int, ...]) -> Arrangement:
    """Find out which channels lie where in a network's parameters, and which of them may change places.

    The network's input and output stay as they are, and so does everything that operators without a rule read or write.

    Args:
        model: in evaluation mode, on the CPU; not changed.
        image_shape: (channels, height, width) of one image.

    Raises:
        UsageError: the network cannot be traced by torch.export.
    """
    program = _export(model, image_shape)
    own = _canonical_names(model)
    signature = program.graph_signature
    exported = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = tuple(program.graph.nodes)
    trace = Trace({node: own.get(exported[node.name]) for node in nodes if node.op == "placeholder" and node.name in exported})
    for node in nodes:
        if node.op == "call_function":
            trace.values[node] = propagate(trace, node)
        elif node.op == "output":
            for result in node.all_input_nodes:
                trace.pin(result)
    return trace.arrange()


def _export(model: nn.Module, image_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            # torch.export calls what torch itself has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            # Two images: with one, nothing would tell the batch from an axis that is stretched.
            program = torch.export.export(model, (torch.zeros(2, *image_shape),))
            # No operator is taken apart; those that write in place become ones that do not.
            functional: torch.export.ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:  # tracing runs the user's model and may raise anything
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise UsageError(
            f"channels cannot be reordered: torch.export cannot trace the network for images of shape {image_shape} "
            f"({type(error).__name__}: {reason}); set mask.permute: false to learn masks in the order of channels it has"
        ) from error


def _canonical_names(model: nn.Module) -> dict[str, str | None]:
    """Every name of a parameter or buffer -> the first name of the same tensor; None for tensors that must stay.

    These are views of one another's memory, and buffers outside the state dict, which no file of weights brings.
    """
    stored = model.state_dict().keys()
    tensors = dict(_tensors(model))
    first: dict[int, str] = {}
    owners: dict[int, set[int]] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
        owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
    return {
        name: first[id(tensor)]
        if first[id(tensor)] in stored and len(owners[tensor.untyped_storage().data_ptr()]) == 1
        else None
        for name, tensor in tensors.items()
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
