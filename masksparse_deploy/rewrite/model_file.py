"""The sparse file as a message to rewrite, and the rewritten one as bytes to write."""

from pathlib import Path

import onnx

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.annotations import ROLE, ROLE_REWRITTEN
from masksparse_deploy.graph.functions import inlined

__all__ = ["load_model", "rewritten_bytes"]

_LARGEST_MODEL_BYTES = 2**31 - 1


def load_model(path: Path) -> onnx.ModelProto:
    """The file with the weights that lie in other files, functions inlined and nodes named as `read_graph` does.

    Raises:
        UsageError: all together is more than one message can hold.
    """
    try:
        model = onnx.load(path)
    except ValueError as error:  # what protobuf raises above 2 GB
        raise _too_large(path) from error
    model = inlined(model)
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while not node.name and name in taken:
            name += "_"
        node.name = name
    return model


def rewritten_bytes(model: onnx.ModelProto, path: Path) -> bytes:
    """The rewritten model as one file, which says that it was rewritten; `path` is that of the sparse file, for messages.

    Raises:
        UsageError: it is more than one file can hold.
    """
    roles = [entry for entry in model.metadata_props if entry.key == ROLE]
    for entry in roles or [model.metadata_props.add(key=ROLE)]:
        entry.value = ROLE_REWRITTEN
    if model.ByteSize() > _LARGEST_MODEL_BYTES:
        raise _too_large(path)
    return bytes(model.SerializeToString(deterministic=True))


def _too_large(path: Path) -> UsageError:
    return UsageError(
        f"{path} and its data files are more than the 2 GB that one file holds; rewrite a smaller model, or leave the stage "
        "out with rewrite.mode never"
    )
