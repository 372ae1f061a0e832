"""Files made to do harm: data that lies elsewhere, sizes that are lies, bombs, and what is no ONNX file at all."""

import gzip
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import onnx
from onnx import TensorProto, helper

__all__ = ["HOSTILE_MUTATIONS", "MODEL_NAME", "OUTSIDE_NAME", "Layout"]

MODEL_NAME = "model.onnx"
# A file that is there, large enough to be taken for weights, in the folder above the model's.
OUTSIDE_NAME = "outside.data"

# protobuf tags, wire type 2: ModelProto.graph, GraphProto.node, NodeProto.attribute, AttributeProto.g
_GRAPH, _NODE, _ATTRIBUTE, _BODY = b"\x3a", b"\x0a", b"\x2a", b"\x32"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A folder with an ONNX file: regular files, symbolic links and named pipes by name.

    Attributes:
        must_refuse: nothing may be read from it as if it were valid.
    """

    files: Mapping[str, bytes]
    links: Mapping[str, str] = field(default_factory=dict)
    pipes: tuple[str, ...] = ()
    must_refuse: bool = False

    @property
    def model(self) -> bytes:
        """The ONNX file."""
        return self.files[MODEL_NAME]

    def with_model(self, data: bytes) -> "Layout":
        """The same with another ONNX file."""
        return replace(self, files={**self.files, MODEL_NAME: data})

    def write(self, folder: Path) -> None:
        """Lay everything out in `folder`, and the file that nobody may read above it."""
        folder.mkdir(parents=True)
        folder.with_name(OUTSIDE_NAME).write_bytes(bytes(1 << 16))
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        for name, target in self.links.items():
            (folder / name).symlink_to(target)
        for name in self.pipes:
            os.mkfifo(folder / name)

    @classmethod
    def read(cls, folder: Path, *, must_refuse: bool) -> "Layout":
        """What `write` laid out."""
        entries = sorted(folder.iterdir())
        return cls(
            files={path.name: path.read_bytes() for path in entries if path.is_file() and not path.is_symlink()},
            links={path.name: str(path.readlink()) for path in entries if path.is_symlink()},
            pipes=tuple(path.name for path in entries if path.is_fifo()),
            must_refuse=must_refuse,
        )


def _outside(layout: Layout) -> tuple[onnx.ModelProto, TensorProto, Layout]:
    """The model with a weight that lies in a file of its own, that weight, and the folder."""
    model = onnx.load_model_from_string(layout.model)
    tensors = model.graph.initializer
    found = next((tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL), None)
    if found is not None:
        return model, found, layout
    found = next((tensor for tensor in tensors if tensor.raw_data), None)
    if found is None:
        found = helper.make_tensor("unread", TensorProto.FLOAT, [4], bytes(16), raw=True)
        model.graph.initializer.append(found)
        found = model.graph.initializer[-1]
    files = {**layout.files, "weights.data": found.raw_data}
    _point(found, location="weights.data", offset="0", length=str(len(found.raw_data)))
    return model, found, replace(layout, files=files)


def _point(tensor: TensorProto, **entries: str) -> None:
    """Say that the tensor's data lies in a file; entries that are not given stay as they are."""
    old = {entry.key: entry.value for entry in tensor.external_data}
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {**old, **entries}.items():
        tensor.external_data.add(key=key, value=value)


def _elsewhere(random: Random, layout: Layout) -> Layout:
    """External data outside the folder: by its path, behind a link, or in no regular file."""
    model, tensor, layout = _outside(layout)
    links: dict[str, str] = {}
    pipes: tuple[str, ...] = ()
    location = random.choice(
        (
            f"../{OUTSIDE_NAME}",
            f"sub/../../{OUTSIDE_NAME}",
            f"./././../{OUTSIDE_NAME}",
            str(Path(os.__file__).resolve()),
            "/dev/zero",
            "link",
            "link to link",
            f"folder/{OUTSIDE_NAME}",
            "pipe",
            ".",
            "..",
            "",
            "\x00",
            "no such file",
        )
    )
    if "link" in location:
        links = {"link": random.choice((f"../{OUTSIDE_NAME}", "/dev/zero", "link")), "link to link": "link"}
    elif "folder" in location:
        links = {"folder": ".."}
    elif location == "pipe":
        pipes = ("pipe",)
    _point(tensor, location=location)
    if random.random() < 0.3:
        kept = [entry for entry in tensor.external_data if entry.key == "location"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    return replace(layout.with_model(model.SerializeToString()), links=links, pipes=pipes, must_refuse=True)


def _wrong_extent(random: Random, layout: Layout) -> Layout:
    """External data before or behind the file, too short, too long, or no number."""
    model, tensor, layout = _outside(layout)
    sizes = {entry.key: entry.value for entry in tensor.external_data}
    length = int(sizes["length"])
    if random.random() < 0.5:
        _point(tensor, offset=random.choice(("-1", "-4096", "1000000", str(2**63 - 1), str(2**64), "abc", "1e3", "0x10")))
    else:
        wrong = ("-1", "0", str(length - 1), str(length + 1), "1000000", str(2**63 - 1), "9" * 5000, "abc", "nan")
        _point(tensor, length=random.choice(wrong))
    return replace(layout.with_model(model.SerializeToString()), must_refuse=True)


def _cut_data(random: Random, layout: Layout) -> Layout:
    """The external file is shorter than the model says."""
    model, tensor, layout = _outside(layout)
    location = next(entry.value for entry in tensor.external_data if entry.key == "location")
    files = {**layout.files, location: layout.files[location][: -random.choice((1, 4, 100))]}
    return replace(replace(layout, files=files).with_model(model.SerializeToString()), must_refuse=True)


def _duplicate_entries(random: Random, layout: Layout) -> Layout:
    """Two locations, offsets or lengths, or entries that do not exist; readers differ in which one they take."""
    model, tensor, layout = _outside(layout)
    pairs = (
        ("location", f"../{OUTSIDE_NAME}"),
        ("offset", "8"),
        ("length", "4"),
        ("checksum", "0"),
        ("unknown", "value"),
        ("", ""),
    )
    for key, value in random.sample(pairs, random.randrange(1, 4)):
        tensor.external_data.add(key=key, value=value)
    if random.random() < 0.3:
        tensor.raw_data = bytes(16)
    return layout.with_model(model.SerializeToString())


def _lying_dims(random: Random, layout: Layout) -> Layout:
    """A few bytes that claim to be far more, or another number, of values."""
    model = onnx.load_model_from_string(layout.model)
    tensors = [tensor for tensor in model.graph.initializer if tensor.dims]
    if not tensors:
        model.graph.initializer.append(helper.make_tensor("unread", TensorProto.FLOAT, [4], bytes(16), raw=True))
        tensors = list(model.graph.initializer)
    tensor = random.choice(tensors)
    claims = ([10**12], [10**6] * 3, [2**62, 4], [2**63 - 1], [-1], [-(2**63), 2], [0, -1], [3], [65536] * 4)
    dims = [claim for claim in claims if claim != list(tensor.dims)]
    del tensor.dims[:]
    tensor.dims.extend(random.choice(dims))
    return replace(layout.with_model(model.SerializeToString()), must_refuse=True)


def _zip_bomb(random: Random, layout: Layout) -> Layout:
    """A small archive of very many zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MODEL_NAME, bytes(random.choice((1 << 16, 1 << 24))))
    return replace(layout.with_model(stream.getvalue()), must_refuse=True)


def _other_format(random: Random, layout: Layout) -> Layout:
    """An empty file, a compressed one, text, and formats that weights come in."""
    contents = (
        b"",
        b"\0",
        gzip.compress(layout.model),
        b"\x80\x04\x95",
        b"\x93NUMPY\x01\x00",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"ONNX is what this file claims to be\n" * 3,
        b'{"irVersion": "10"}',
        bytes(5000),
        b"\xff" * 5000,
    )
    return replace(layout.with_model(random.choice(contents)), must_refuse=True)


def _no_regular_file(random: Random, layout: Layout) -> Layout:
    """A pipe, an endless device, or a link to itself in place of the model."""
    files = {name: data for name, data in layout.files.items() if name != MODEL_NAME}
    choice = random.choice(("pipe", "/dev/zero", MODEL_NAME, ".."))
    if choice == "pipe":
        return replace(layout, files=files, pipes=(MODEL_NAME,), must_refuse=True)
    return replace(layout, files=files, links={MODEL_NAME: choice}, must_refuse=True)


def _nested(random: Random, layout: Layout) -> Layout:
    """If inside If, deeper than anybody writes and than protobuf reads; a second graph in a file is merged into the first."""
    y = helper.make_tensor_value_info("deep", TensorProto.FLOAT, [None, None])
    leaf = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["deep"])], "leaf", [], [y])
    shell = helper.make_graph([], "shell", [], [y]).SerializeToString()
    node = helper.make_node("If", ["condition"], ["deep"], else_branch=leaf).SerializeToString()
    branch = helper.make_attribute("then_branch", helper.make_graph([], "", [], []))
    branch.ClearField("g")
    body = leaf.SerializeToString()
    for _ in range(random.choice((2, 20, 33, 90, 1000))):
        attribute = branch.SerializeToString() + _field(_BODY, body)
        body = shell + _field(_NODE, node + _field(_ATTRIBUTE, attribute))
    condition = helper.make_graph([], "", [], [], [helper.make_tensor("condition", TensorProto.BOOL, [], [1])])
    return layout.with_model(layout.model + _field(_GRAPH, condition.SerializeToString()) + _field(_GRAPH, body))


def _field(tag: bytes, content: bytes) -> bytes:
    """A message inside another one: its tag, its length as a varint, its bytes."""
    length, varint = len(content), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return tag + bytes([*varint, length]) + content


HOSTILE_MUTATIONS: Mapping[str, Callable[[Random, Layout], Layout]] = {
    "external: elsewhere": _elsewhere,
    "external: wrong extent": _wrong_extent,
    "external: cut short": _cut_data,
    "external: entries twice": _duplicate_entries,
    "lying dims": _lying_dims,
    "zip bomb": _zip_bomb,
    "other formats": _other_format,
    "no regular file": _no_regular_file,
    "nesting": _nested,
}
