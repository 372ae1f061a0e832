"""Taking out of an ONNX file what exporters note about the machine it was made on."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import onnx

__all__ = ["each_message", "strip_all_notes", "strip_annotations", "strip_machine_notes"]

# What PyTorch's exporter and onnxscript note for their own debugging: stack traces, names of Python classes and functions.
_EXPORTER_PREFIXES = ("pkg.torch.", "pkg.onnxscript.")
# An absolute path, of any system, to a Python source; the legacy exporter writes such into documentation strings.
_SOURCE_PATH = re.compile(r"(?:^|[\s\"'(=,;:])(?:/|~/|[A-Za-z]:[\\/]|\\\\)[^\n\"'<>|]*\.pyc?\b", re.MULTILINE)


def each_message(message: Any) -> Iterator[Any]:
    """`message` and all messages in it, outside in; tensors are not looked into."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from each_message(part)


def strip_all_notes(model: onnx.ModelProto) -> None:
    """Remove all metadata and documentation strings, and the build tag from the version of the producer.

    For files that this package exports itself: nobody has put anything of his own into them.
    """
    model.producer_version = model.producer_version.partition("+")[0]
    for part in each_message(model):
        if hasattr(part, "metadata_props"):
            part.ClearField("metadata_props")
        if hasattr(part, "doc_string"):
            part.ClearField("doc_string")


def strip_machine_notes(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes and whatever names a Python source by an absolute path; the user's own texts stay."""
    for part in each_message(model):
        if hasattr(part, "metadata_props"):
            _keep_metadata(part, lambda key, value: not (key.startswith(_EXPORTER_PREFIXES) or _SOURCE_PATH.search(value)))
        if hasattr(part, "doc_string") and _SOURCE_PATH.search(part.doc_string):
            part.ClearField("doc_string")


def strip_annotations(model: onnx.ModelProto, prefix: str) -> None:
    """Remove the metadata whose keys start with `prefix`: what an earlier baking said of other values."""
    for part in each_message(model):
        if hasattr(part, "metadata_props"):
            _keep_metadata(part, lambda key, value: not key.startswith(prefix))


def _keep_metadata(part: Any, is_kept: Callable[[str, str], object]) -> None:
    kept = [entry for entry in part.metadata_props if is_kept(entry.key, entry.value)]
    if len(kept) == len(part.metadata_props):
        return
    pairs = [(entry.key, entry.value) for entry in kept]
    part.ClearField("metadata_props")
    for key, value in pairs:
        part.metadata_props.add(key=key, value=value)
