"""The import of a model that another tool made sparse: what its zeros are good for, and masks where they are usable."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.artifacts.foreign import ImportedLayer, ImportReport
from masksparse_deploy.core.config import ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import make_folder, require_file, sha256_bytes, sha256_file, write_atomic
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.eligibility import GROUP_AXIS, obstacles
from masksparse_deploy.learn.foreign_state import ForeignState, read_foreign
from masksparse_deploy.learn.foreign_verdict import explain_zeros
from masksparse_deploy.learn.groupings import HARDWARE_PATTERN, find_groups
from masksparse_deploy.learn.model import build_model, fill_model, read_state, state_fingerprint
from masksparse_deploy.learn.probe import WeightLayer, probe_model, weight_layers

__all__ = ["MASKS", "METHOD", "REPORT", "WEIGHTS", "import_foreign"]

MASKS = "masks.safetensors"
WEIGHTS = "weights.safetensors"
REPORT = "import.json"
METHOD = "imported"
_WITHOUT_MASK = (
    "the file holds the weight without its mask: torch.ao.pruning saves no masks, call the sparsifier's squash_mask() "
    "before saving"
)


def import_foreign(
    model_options: ModelOptions,
    *,
    image_shape: tuple[int, int, int],
    pattern: str | None = None,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> ImportReport:
    """Look at the zeros of a checkpoint, write weights.safetensors, masks.safetensors and import.json.

    Read are state dicts with zeros in them, and those of ASP, Model-Optimizer, torch.nn.utils.prune and torch.ao.pruning
    with the masks beside the weights. A layer is usable if every 4 consecutive input channels keep at most 2 weights, for
    each output channel and kernel position, and nothing else keeps it from carrying a mask. Its mask keeps the nonzero
    weights, then those that the tool's mask keeps, then the lowest index, until every group keeps exactly N.

    Args:
        model_options: the factory of the network, without what the tool added to it, and the tool's checkpoint.
        image_shape: (channels, height, width) of an image that the network takes, for counting its arithmetic.
        pattern: N:M, to look for this pattern alone; None to find it.
        folder: where relative paths start and the factory's module lies.
        out: output folder; masks.safetensors is written only if a layer is usable.
        progress: told of every layer.

    Raises:
        UsageError: no such file, `pattern` drops nothing, the checkpoint holds what is no plain tensor, or checkpoint,
            network and image shape do not fit one another.
        ArtifactError: the checkpoint is damaged, or holds pickled objects, NaN or infinite weights.
        OutputError: `out` cannot be written.
    """
    asked = NMPattern.parse(pattern) if pattern is not None else None
    if asked is not None and asked.n == asked.m:
        raise UsageError(f"pattern {asked} drops nothing, so every weight follows it; give one with N < M, as 2:4, or none")
    if asked is not None and asked.transposable:
        plain = replace(asked, transposable=False)
        raise UsageError(
            f"pattern {asked}: an import looks for zeros along one axis; give {plain}, bake the masks it finds, and ask "
            "'masksparse lint --transposable' whether they hold along the other axis too"
        )
    path = require_file(folder / model_options.weights, "checkpoint")
    model = build_model(model_options.factory, folder)
    foreign = read_foreign(read_state(path, model), model.state_dict().keys(), where=str(path))
    model = fill_model(model, foreign.state, path)
    probe = probe_model(model, image_shape)
    layers, masks = [], {}
    found = weight_layers(model)
    for done, (name, module) in enumerate(found.items(), start=1):
        weight_name = f"{name}.weight" if name else "weight"
        weight = module.weight.detach().numpy()
        groups = find_groups(weight != 0, input_axis=_input_axis(module), asked=asked)
        obstacle = obstacles(model, probe, pattern=groups.pattern or HARDWARE_PATTERN).get(name)
        usable = groups.zeros == "input channels" and groups.suits_hardware and obstacle is None
        if usable and groups.pattern is not None:
            masks[weight_name] = _mask(weight_name, weight, foreign, groups.pattern)
        layers.append(
            ImportedLayer(
                name=name,
                weight_name=weight_name,
                shape=tuple(weight.shape),
                zeros=groups.zeros,
                pattern=str(groups.pattern) if groups.pattern is not None else None,
                usable=usable,
                why=_WITHOUT_MASK if weight_name in foreign.unmasked else explain_zeros(groups, obstacle, weight.shape),
                density=float(np.count_nonzero(weight) / weight.size),
                groupings=groups.groupings,
                mask_sha256=masks[weight_name].digest if usable else None,
                weight_count=weight.size,
                mac_count=probe.mac_counts.get(name, 0),
            )
        )
        progress("looking at layers", done, len(found))
    return _write(model, tuple(layers), masks, foreign=foreign, asked=asked, checkpoint=path, out=out)


def _write(
    model: nn.Module,
    layers: tuple[ImportedLayer, ...],
    masks: Mapping[str, LayerMask],
    *,
    foreign: ForeignState,
    asked: NMPattern | None,
    checkpoint: Path,
    out: Path,
) -> ImportReport:
    mask_set = MaskSet(
        layers=masks,
        source_sha256=state_fingerprint(model),
        method=METHOD,
        skipped=tuple(
            SkippedLayer(name=layer.name, reason=layer.why, weight_count=layer.weight_count, mac_count=layer.mac_count)
            for layer in layers
            if not layer.usable
        ),
    )
    total = sum(layer.mac_count for layer in layers)
    saved = sum(layer.mac_count * (1 - HARDWARE_PATTERN.density) for layer in layers if layer.usable)
    weights = _weights_bytes(model)
    report = ImportReport(
        tool=foreign.tool,
        asked_pattern=str(asked) if asked is not None else None,
        checkpoint_sha256=sha256_file(checkpoint),
        weights_sha256=sha256_bytes(weights),
        mask_set_sha256=mask_set.digest if masks else None,
        layers=layers,
        amdahl_limit=total / (total - saved) if total else 1.0,
    )
    make_folder(out)
    write_atomic(out / WEIGHTS, weights)
    if masks:
        mask_set.write(out / MASKS)
    report.write(out / REPORT)
    return report


def _weights_bytes(model: nn.Module) -> bytes:
    # safetensors refuses tensors that share memory, as weights shared between modules do.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    return save_safetensors(tensors)


def _input_axis(module: WeightLayer) -> int:
    return 0 if isinstance(module, _ConvTransposeNd) else GROUP_AXIS


def _mask(weight_name: str, weight: npt.NDArray[np.float32], foreign: ForeignState, pattern: NMPattern) -> LayerMask:
    order = (weight != 0).astype(np.float32)
    if weight_name in foreign.masks:
        # What the tool drops is zero, so these come after the nonzero weights.
        order += foreign.masks[weight_name].numpy()
    if pattern.m != HARDWARE_PATTERN.m:
        # Asked for, as 4:8, of weights that the hardware's pattern fits as well: kernels are told of that one.
        pattern = HARDWARE_PATTERN
    keep = pattern.keep_largest(order, group_axis=GROUP_AXIS)
    return LayerMask(weight_name=weight_name, keep=keep, group_axis=GROUP_AXIS, pattern=pattern)
