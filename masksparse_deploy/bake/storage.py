"""ONNX files and the data files beside them: read without loading them, written whole or not at all.

Protobuf cannot write a message of 2 GiB. Larger models keep their weights in data files, and so does a model that came with
some: each tensor goes to the file that it came from, renamed after the model.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnx
import onnx_ir as ir

from masksparse_deploy.bake.proto_twins import any_content, proto_differences
from masksparse_deploy.bake.stored import replace_stored, stored_tensor, stored_values
from masksparse_deploy.bake.strip import each_message
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import atomic_output, make_folder, output_error, require_file

__all__ = [
    "LARGEST_MODEL_BYTES",
    "data_layout",
    "load_proto",
    "proto_with_data",
    "renamed",
    "staged_folder",
    "to_ir",
    "to_proto",
    "write_model",
]

# Above this much of weights a model gets a data file; protobuf's own limit is 2**31 - 1 for everything.
LARGEST_MODEL_BYTES = 2_000_000_000
# Smaller tensors (scales, axes, shapes) stay inside the model, where shape inference can see them.
_SMALLEST_EXTERNAL_BYTES = 1024
# Runtimes map pages: a tensor that starts on one can be used where it lies.
_ALIGNMENT_BYTES = 4096
_STAGED = ".baking.partial"


def load_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that `read_graph` accepts, but not the data files beside it.

    Raises:
        UsageError: there is no such file, or it says something that this version of ONNX does not know.
        ArtifactError: it is not ONNX.
    """
    data = require_file(path, "ONNX file").read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's decoder has no public exception type of its own
        raise ArtifactError(f"{path} is damaged or not a valid ONNX file ({error}); export it again") from error
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise UsageError(
            f"{path} holds fields that ONNX {onnx.__version__} does not know and that would be lost; install a newer onnx, or "
            "remove what another tool put there"
        )
    return model


def to_ir(model: onnx.ModelProto, folder: Path) -> ir.Model:
    """The model for passes to work on; tensors in data files below `folder` are mapped when they are asked for.

    Raises:
        UsageError: the file holds something that passes cannot carry, which would be lost.
    """
    outside = sum(isinstance(part, onnx.TensorProto) and _is_external(part) for part in each_message(model))
    try:
        graph = ir.from_proto(model)
        lost = tuple(proto_differences(model, to_proto(graph), any_content))
    except Exception as error:  # what the library cannot represent it tells in many types
        raise UsageError(f"the ONNX file holds what cannot be rewritten ({_root_reason(error)}); simplify it first") from error
    for value in stored_values(graph):
        tensor = stored_tensor(value)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
            outside -= 1
    if outside:
        lost += ("attributes of operators other than Constant that lie in data files",)
    if lost:
        raise UsageError(
            f"the ONNX file holds what would be lost by rewriting it ({', '.join(lost[:3])}); remove that, or store it in "
            "another way"
        )
    return graph


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a message; tensors in data files are named, not read."""
    proto = ir.to_proto(model)
    for part in each_message(proto):
        if isinstance(part, onnx.TensorProto) and len(part.metadata_props) > 1:
            # Serializing repeats the properties of a tensor that was read: the later entry holds.
            properties = {entry.key: entry.value for entry in part.metadata_props}
            part.ClearField("metadata_props")
            for key in sorted(properties):
                part.metadata_props.add(key=key, value=properties[key])
    return proto


def proto_with_data(model: ir.Model) -> onnx.ModelProto:
    """The model as one message, with the tensors that lie in data files.

    Raises:
        UsageError: that is more than one message can hold.
    """
    before = {value: stored_tensor(value) for value in stored_values(model)}
    total = sum(tensor.nbytes for tensor in before.values())
    if total > LARGEST_MODEL_BYTES:
        raise UsageError(
            f"the weights have {total:,} bytes, and other precisions than fp32 are made of models up to "
            f"{LARGEST_MODEL_BYTES:,}; bake with bake.precision fp32"
        )
    try:
        for value, tensor in before.items():
            if isinstance(tensor, ir.ExternalTensor):
                replace_stored(value, _loaded(tensor))
        return to_proto(model)
    finally:
        for value, tensor in before.items():
            replace_stored(value, tensor)


def data_layout(model: ir.Model) -> Mapping[str, str]:
    """Name of each constant that lies in a data file -> that file, relative to the model's folder."""
    tensors = {value.name or "": stored_tensor(value) for value in stored_values(model)}
    return {name: str(tensor.location) for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}


def renamed(location: str, path: Path) -> str:
    """The data file of the model at `path` that takes the place of `location`, relative to the model's folder."""
    place = PurePosixPath(location)
    return str(place.with_name(f"{path.stem}.{place.name}"))


def write_model(model: ir.Model, path: Path, *, layout: Mapping[str, str]) -> tuple[Path, ...]:
    """Write a model, with data files where its layout has them or where it is too large for one file.

    Tensors are written one after the other. The data files appear before the model, and a model that they would replace
    disappears first: whatever happens, no model is left beside data of another one.

    Args:
        model: left as it was.
        path: of the ONNX file; data file "weights.bin" of sparse.onnx becomes "sparse.weights.bin" in the same place.
        layout: as `data_layout` gives it. Large constants that are not in it go to its first file.

    Returns:
        All files written, the model last.

    Raises:
        OutputError: they cannot be written; nothing is left of them.
    """
    places = _places(model, path, layout)
    before = {value: stored_tensor(value) for value in places}
    try:
        with ExitStack() as outputs:
            partial = outputs.enter_context(atomic_output(path))
            streams: dict[str, BinaryIO] = {}
            for location in dict.fromkeys(places.values()):
                data_partial = outputs.enter_context(atomic_output(path.parent / location))
                streams[location] = outputs.enter_context(data_partial.open("wb"))
            for value, location in places.items():
                replace_stored(value, _moved(before[value], location, streams[location]))
            partial.write_bytes(to_proto(model).SerializeToString(deterministic=True))
            for stream in streams.values():
                stream.close()
            if streams:
                path.unlink(missing_ok=True)
    finally:
        for value, tensor in before.items():
            replace_stored(value, tensor)
    return (*(path.parent / location for location in streams), path)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder inside `out`; when the block ends well, move all files in it to `out`, else remove them.

    Models that would be replaced are removed first, and data files are moved before models, JSON reports last: a run that
    is killed in between leaves files missing, but none beside files of another run.

    Raises:
        OutputError: `out` cannot be written.
    """
    folder = make_folder(out) / _STAGED
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (_rank(path), path))
        targets = [out / path.relative_to(folder) for path in files]
        for target in targets[::-1]:
            if _rank(target):
                target.unlink(missing_ok=True)
        for path, target in zip(files, targets, strict=True):
            make_folder(target.parent)
            path.replace(target)
    except OSError as error:
        raise output_error(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rank(path: Path) -> int:
    return (".onnx", ".json").index(path.suffix) + 1 if path.suffix in (".onnx", ".json") else 0


def _places(model: ir.Model, path: Path, layout: Mapping[str, str]) -> dict[ir.Value, str]:
    """The constants that go into data files, and into which."""
    values = {value: stored_tensor(value) for value in stored_values(model)}
    inside = sum(tensor.nbytes for value, tensor in values.items() if value.name not in layout)
    locations = {name: renamed(location, path) for name, location in layout.items()}
    overflow = next(iter(locations.values()), f"{path.name}.data") if layout or inside > LARGEST_MODEL_BYTES else None
    places = {}
    for value, tensor in values.items():
        is_large = tensor.nbytes >= _SMALLEST_EXTERNAL_BYTES and tensor.dtype != ir.DataType.STRING
        location = locations.get(value.name or "", overflow if is_large and inside > LARGEST_MODEL_BYTES else None)
        if location is not None:
            places[value] = location
    return places


def _moved(tensor: ir.TensorProtocol, location: str, stream: BinaryIO) -> ir.ExternalTensor:
    """Append a tensor to a data file; what stands for it in the model afterwards."""
    stream.write(bytes(-stream.tell() % _ALIGNMENT_BYTES))
    offset = stream.tell()
    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor, ir.Tensor)):
        tensor.tofile(stream)
    else:
        stream.write(tensor.tobytes())
    return ir.ExternalTensor(
        location,
        offset,
        stream.tell() - offset,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _loaded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _root_reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
