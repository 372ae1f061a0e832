"""Masks and mask sets: frozen values with digests, and their file format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from masksparse_deploy.core.any_pattern import Pattern, parse_pattern
from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError, MasksparseError
from masksparse_deploy.core.files import canonical_json, require_file, sha256_bytes, write_atomic
from masksparse_deploy.core.groups import count_kept
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.positions import PositionMask

__all__ = ["AxisPermutation", "LayerMask", "MaskSet", "fingerprint", "read_mask_set"]

SCHEMA_VERSION = 4
_KEEP = "keep/"
_STATISTICS = "statistics/"
_ORDER = "order/"
_WEIGHTS = "weights/"
_POSITIONS = "positions/"


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and values; the order of the mapping does not matter."""
    parts = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        parts.append(f"{name}|{array.dtype.str}|{array.shape}|{sha256_bytes(array.tobytes())}")
    return sha256_bytes("\n".join(parts).encode())


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = np.array(array, order="C", copy=True)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerMask:
    """Which weights of one layer are kept.

    Attributes:
        weight_name: the parameter's name in the model, as "layer1.0.conv1.weight".
        keep: bool, the weight's shape (out_channels, in_channels, kernel_h, kernel_w) or (out_features, in_features).
        group_axis: the axis along which groups run; 1, the input channels.
        pattern: N:M; every group keeps exactly N, a last group of only R members min(N, R), and a transposable one holds along
            the axis of the output channels too. Or 1xN: blocks are kept or dropped as a whole, exactly as many as it says.
        unpadded_shape: the weight's shape before channels of zeros were appended to it, which keep nothing; None if none
            were. Masks of a file with padded channels have it, learned masks never do.
    """

    weight_name: str
    keep: npt.NDArray[np.bool_]
    group_axis: int
    pattern: Pattern
    unpadded_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.keep.dtype != np.bool_:
            raise ArtifactError(f"mask of {self.weight_name}: keep is {self.keep.dtype}, not bool")
        object.__setattr__(self, "keep", _frozen(self.keep))
        own = self.keep if self.unpadded_shape is None else self._unpadded(self.unpadded_shape)
        if isinstance(self.pattern, BlockPattern):
            self._check_blocks(own, self.pattern)
        else:
            self._check_groups(own, self.pattern)

    @property
    def is_partial(self) -> bool:
        """Whether the last group is not full, so that the weight needs channels of zeros in a file for sparse kernels."""
        return isinstance(self.pattern, NMPattern) and bool(self.keep.shape[self.group_axis] % self.pattern.m)

    def padded(self, shape: tuple[int, ...]) -> "LayerMask":
        """The mask of the weight with zeros appended up to `shape`: nothing of them is kept.

        Raises:
            ArtifactError: `shape` has other axes, or shorter ones, or the pattern is 1xN, which needs no such channels.
        """
        if isinstance(self.pattern, BlockPattern):
            raise ArtifactError(f"mask of {self.weight_name}: a {self.pattern} mask is not padded, as it has no groups to fill")
        if len(shape) != self.keep.ndim or any(new < old for new, old in zip(shape, self.keep.shape, strict=True)):
            raise ArtifactError(f"mask of {self.weight_name}: {self.keep.shape} cannot be padded to {shape}")
        widths = [(0, new - old) for new, old in zip(shape, self.keep.shape, strict=True)]
        return replace(self, keep=np.pad(self.keep, widths), unpadded_shape=self.unpadded_shape or self.keep.shape)

    def _unpadded(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        own = self.keep[tuple(slice(length) for length in shape)]
        if own.shape != shape or 0 in shape or np.count_nonzero(own) != np.count_nonzero(self.keep):
            raise ArtifactError(
                f"mask of {self.weight_name}: of shape {self.keep.shape}, it keeps weights outside the unpadded shape {shape}"
            )
        return own

    def _check_groups(self, own: npt.NDArray[np.bool_], pattern: NMPattern) -> None:
        """Every group keeps exactly N, along every axis of the pattern."""
        for axis in pattern.group_axes(self.group_axis, own.ndim):
            length = own.shape[axis]
            if pattern.transposable and length % pattern.m:
                raise ArtifactError(
                    f"mask of {self.weight_name}: axis {axis} has {length} elements; a transposable {pattern} mask needs "
                    f"multiples of {pattern.m}"
                )
            kept = count_kept(own, axis=axis, size=pattern.m)
            expected = pattern.kept_per_group(length)
            wrong = int((kept != expected.reshape(-1, *[1] * (own.ndim - axis - 1))).sum())
            if wrong:
                raise ArtifactError(
                    f"mask of {self.weight_name}: {wrong} of {kept.size} groups do not keep exactly {pattern.n} of {pattern.m}"
                    + (f" along axis {axis}" if pattern.transposable else "")
                )

    def _check_blocks(self, own: npt.NDArray[np.bool_], pattern: BlockPattern) -> None:
        """Blocks are whole, and as many are kept as the pattern says: in every group, or in all if it is not uniform."""
        what = f"mask of {self.weight_name}"
        # a linear layer's weight may be stored as (in, out)
        fits = own.ndim >= 2 and (self.group_axis == 1 or (own.ndim == 2 and self.group_axis == 0))
        shape = own.shape
        own = pattern.outputs_first(own, self.group_axis) if fits else own
        if not fits or own.shape[0] % pattern.n:
            raise ArtifactError(
                f"{what}: shape {shape} and group axis {self.group_axis} do not fit {pattern}, whose blocks are "
                f"{pattern.n} consecutive output channels, on axis 0, of one input channel, on axis 1"
            )
        blocks = pattern.blocks(own)
        split = int((pattern.expand(blocks, own.shape) != own).any(axis=tuple(range(2, own.ndim))).sum())
        if split:
            raise ArtifactError(
                f"{what}: {split} kernels are dropped, in whole or part, from blocks of {pattern} that keep others"
            )
        counts = blocks.sum(axis=1) if pattern.uniform else np.array([blocks.sum()])
        expected = pattern.kept_channels(own.shape[1]) if pattern.uniform else pattern.kept_blocks(*own.shape[:2])
        wrong = int((counts != expected).sum())
        if wrong and pattern.uniform:
            raise ArtifactError(
                f"{what}: {wrong} of {counts.size} groups of {pattern.n} output channels do not keep exactly {expected} of "
                f"{own.shape[1]} input channels, as {pattern} says"
            )
        if wrong:
            raise ArtifactError(f"{what}: it keeps {counts[0]} of {blocks.size} blocks, not {expected}, as {pattern} says")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of name, pattern, axis, shape and kept positions."""
        head = f"{self.weight_name}|{self.pattern}|{self.group_axis}|{self.keep.shape}|"
        return sha256_bytes(head.encode() + np.packbits(self.keep).tobytes())


@dataclass(frozen=True, eq=False, kw_only=True)
class AxisPermutation:
    """A new order of one axis of one parameter or buffer: permuted[i] = original[order[i]] along `axis`.

    Attributes:
        name: the tensor's name in the state dict.
        axis: of the tensor.
        order: int64 (length of the axis,), every index once.
    """

    name: str
    axis: int
    order: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.order.dtype != np.int64 or not np.array_equal(np.sort(self.order), np.arange(self.order.size)):
            raise ArtifactError(f"permutation of {self.name}, axis {self.axis}: not every index exactly once")
        object.__setattr__(self, "order", _frozen(self.order))

    @property
    def key(self) -> str:
        """Tells the permutations of a mask set apart: "axis/name"."""
        return f"{self.axis}/{self.name}"


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskSet:
    """The masks of one model, and for which weights they were made.

    Attributes:
        layers: weight name -> mask.
        source_sha256: `fingerprint` of the state dict (parameters and buffers, float) the masks were made for.
        method: how the masks were chosen, as "magnitude" or "scores".
        skipped: layers left dense, with reasons.
        statistics: re-estimated batch-norm running statistics, buffer name -> float32 array; empty if untouched.
        permutations: new channel orders, under which the network computes the same; masks and statistics are of the
            permuted network. Empty if untouched.
        padded_from: the digest of the learned set, where this one is made from it for a file with padded channels.
        weights: new values of parameters, where the method changed weights: parameter name -> float32 array of its shape, 0
            wherever the layer's mask drops a weight. Of the permuted network, as masks and statistics are. Empty if the
            weights stayed frozen.
        positions: layer name -> which positions of its output are computed; every mask drops some. Empty if all are computed.
    """

    layers: Mapping[str, LayerMask]
    source_sha256: str
    method: str
    skipped: tuple[SkippedLayer, ...] = ()
    statistics: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    permutations: tuple[AxisPermutation, ...] = ()
    padded_from: str | None = None
    weights: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    positions: Mapping[str, PositionMask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "positions", MappingProxyType(dict(self.positions)))
        for part in ("statistics", "weights"):
            frozen = {name: _frozen(array) for name, array in getattr(self, part).items()}
            object.__setattr__(self, part, MappingProxyType(frozen))
        if self.padded_from is None:
            self._check_values()
            self._check_weights()
            self._check_positions()

    def _check_values(self) -> None:
        for what, arrays in (("batch-norm statistic", self.statistics), ("new weight", self.weights)):
            for name, array in arrays.items():
                if array.dtype != np.float32:
                    raise ArtifactError(f"{what} {name}: its values are {array.dtype}, not float32")
                wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
                if wrong:
                    raise ArtifactError(f"{what} {name}: {wrong} of {array.size} values are NaN or infinite")

    def _check_weights(self) -> None:
        for name in self.layers.keys() & self.weights.keys():
            keep, weight = self.layers[name].keep, self.weights[name]
            if weight.shape != keep.shape:
                raise ArtifactError(f"new weight of {name}: its shape is {weight.shape}, that of its mask {keep.shape}")
            dropped = int(np.count_nonzero(weight[~keep]))
            if dropped:
                raise ArtifactError(f"new weight of {name}: {dropped} values that the mask drops are not 0")

    def _check_positions(self) -> None:
        for name, mask in self.positions.items():
            if mask.layer != name:
                raise ArtifactError(f"position mask of {name}: it says that it is of {mask.layer or 'no layer'}")
            if mask.keep.all():
                raise ArtifactError(f"position mask of {name}: it drops none of {mask.keep.shape} positions; leave it out")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that changes the deployed network; independent of insertion order.

        A padded set goes by the digest of the learned one: its further channels are zeros, and a file names what was learned.
        """
        if self.padded_from is not None:
            return self.padded_from
        lines = [self.source_sha256, self.method]
        lines += [self.layers[name].digest for name in sorted(self.layers)]
        lines.append(fingerprint(self.statistics))
        lines.append(fingerprint({permutation.key: permutation.order for permutation in self.permutations}))
        lines.append(fingerprint(self.weights))
        lines += [self.positions[name].digest for name in sorted(self.positions)]
        return sha256_bytes("\n".join(lines).encode())

    def padded(self, layers: Mapping[str, LayerMask]) -> "MaskSet":
        """This set with `layers` in place of its own: the same masks, padded; itself if no layer is another one."""
        if all(layers[name] is mask for name, mask in self.layers.items()):
            return self
        return replace(self, layers=layers, padded_from=self.digest)

    def to_bytes(self) -> bytes:
        """The file's content: safetensors with the metadata as JSON; the same values give the same bytes."""
        assert self.padded_from is None, "a padded mask set is made for one ONNX file; the learned one is what is kept"
        header = {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "source_sha256": self.source_sha256,
            "method": self.method,
            "layers": {n: {"pattern": str(m.pattern), "group_axis": m.group_axis} for n, m in self.layers.items()},
            "skipped": [layer.model_dump() for layer in self.skipped],
        }
        tensors: dict[str, npt.NDArray[Any]] = {_KEEP + name: mask.keep for name, mask in sorted(self.layers.items())}
        tensors.update({_STATISTICS + name: array for name, array in sorted(self.statistics.items())})
        tensors.update({_ORDER + permutation.key: permutation.order for permutation in self.permutations})
        tensors.update({_WEIGHTS + name: array for name, array in sorted(self.weights.items())})
        tensors.update({_POSITIONS + name: mask.keep for name, mask in sorted(self.positions.items())})
        return save_safetensors(tensors, metadata={"masksparse": canonical_json(header).decode()})

    def write(self, path: Path) -> None:
        """Write to `path`, whole or not at all; raises OutputError."""
        write_atomic(path, self.to_bytes())


def read_mask_set(path: Path) -> MaskSet:
    """Read a mask set.

    Raises:
        UsageError: there is no such file.
        ArtifactError: truncated, not a mask set, of another schema version, or its content does not match its digest.
    """
    data = require_file(path, "mask set").read_bytes()
    remedy = "run 'masksparse learn' again"
    try:
        tensors = load_safetensors(data)
        header_bytes = int.from_bytes(data[:8], "little")
        header = dict(json.loads(json.loads(data[8 : 8 + header_bytes])["__metadata__"]["masksparse"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"mask set {path} is damaged or not a mask set ({_first_line(error)}); {remedy}") from error
    if header.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"mask set {path} has schema version {header.get('schema_version')}; this version reads {SCHEMA_VERSION}: {remedy}"
        )
    try:
        layers = {
            name: LayerMask(
                weight_name=name,
                keep=tensors[_KEEP + name],
                group_axis=entry["group_axis"],
                pattern=parse_pattern(entry["pattern"]),
            )
            for name, entry in header["layers"].items()
        }
        skipped = tuple(SkippedLayer.model_validate(entry) for entry in header["skipped"])
        statistics = {key.removeprefix(_STATISTICS): value for key, value in tensors.items() if key.startswith(_STATISTICS)}
        weights = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
        orders = {key.removeprefix(_ORDER): value for key, value in tensors.items() if key.startswith(_ORDER)}
        permutations = tuple(
            AxisPermutation(name=key.partition("/")[2], axis=int(key.partition("/")[0]), order=order)
            for key, order in sorted(orders.items())
        )
        positions = {
            key.removeprefix(_POSITIONS): PositionMask(layer=key.removeprefix(_POSITIONS), keep=value)
            for key, value in sorted(tensors.items())
            if key.startswith(_POSITIONS)
        }
        masks = MaskSet(
            layers=layers,
            source_sha256=header["source_sha256"],
            method=header["method"],
            skipped=skipped,
            statistics=statistics,
            permutations=permutations,
            weights=weights,
            positions=positions,
        )
        recorded, found = header["digest"], masks.digest
    except (AttributeError, KeyError, TypeError, ValueError, MasksparseError) as error:
        raise ArtifactError(f"mask set {path} is damaged ({_first_line(error)}); {remedy}") from error
    if found != recorded:
        raise ArtifactError(
            f"mask set {path} was changed after it was written: recorded digest {recorded}, content digest {found}; {remedy}"
        )
    return masks


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
