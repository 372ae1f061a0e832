"""The trained network: built by the user's factory, filled from a checkpoint, checked, frozen."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from masksparse_deploy.core.archives import refuse_bomb
from masksparse_deploy.core.config import ModelOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.files import require_file
from masksparse_deploy.core.masks import fingerprint

__all__ = ["build_model", "fill_model", "load_model", "read_state", "state_fingerprint", "weights_fingerprint"]

_MAX_NAMED = 3
# Counts training batches; no part of what the network computes.
_COUNTER = "num_batches_tracked"
# Keys under which training scripts, torchvision's references and Model-Optimizer put the state dict.
_NESTING = ("state_dict", "model_state_dict", "model")
# What DataParallel, DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def load_model(options: ModelOptions, folder: Path) -> nn.Module:
    """Build the network and load its weights.

    Args:
        options: the factory and the checkpoint, in a form that `read_state` reads; names may carry the prefix of torch's
            data-parallel or compiling wrappers.
        folder: where the configuration lies; relative paths and the factory's module start here.

    Returns:
        The network in float32 and evaluation mode, on the CPU, with no parameter requiring a gradient.

    Raises:
        UsageError: no such file or factory, the factory returns no module, or the checkpoint belongs to another network.
        ArtifactError: the checkpoint is damaged, or holds pickled objects, NaN or infinite weights.
    """
    path = require_file(folder / options.weights, "checkpoint")
    model = build_model(options.factory, folder)
    return fill_model(model, read_state(path, model), path)


def build_model(factory_name: str, folder: Path) -> nn.Module:
    """The network as the user's factory "module:callable" builds it, its module in `folder` or on the Python path.

    Raises:
        UsageError: no such factory, or it returns no module.
    """
    factory = load_factory(factory_name, folder)
    # Initial weights are overwritten; drawing them must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            model = factory()
        except Exception as error:  # the user's code may raise anything
            raise UsageError(
                f"{factory_name} must build the network when called without arguments; it raised "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{factory_name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def read_state(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of `model`, under its names: without a wrapper's prefix, but with any foreign ones.

    Args:
        path: safetensors, or a file of torch.save that holds a state dict (also under the key "state_dict",
            "model_state_dict" or "model").
        model: its own names tell whether a prefix is a wrapper's.

    Raises:
        UsageError: not a state dict, or quantized, complex or sparsely stored tensors.
        ArtifactError: damaged, or holds pickled objects.
    """
    state = _without_wrapper(_read_tensors(path), model)
    for name, tensor in state.items():
        _check_plain(name, tensor, path)
    return state


def _check_plain(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Refuse what no weight of a network can be filled with."""
    kinds = {
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "without data (on the meta device)": tensor.is_meta,
        f"in the layout {tensor.layout}": tensor.layout != torch.strided,
    }
    kind = next((kind for kind, applies in kinds.items() if applies), None)
    if kind:
        raise UsageError(
            f"checkpoint {path}: {name} is {kind}; weights must be plain real tensors: save the network before it is "
            "converted, or tensor.dequantize() or tensor.to_dense() of it"
        )


def fill_model(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    """Load `state` into `model` and return it: in float32, in evaluation mode, on the CPU, frozen.

    Raises:
        UsageError: the state belongs to another network.
        ArtifactError: NaN or infinite values. Messages name `path`.
    """
    _check_fit(model, state, path)
    model.load_state_dict(state, strict=False)
    model = model.float().cpu().eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ArtifactError(
                f"checkpoint {path}: {name} holds {count} NaN or infinite values of {tensor.numel()}; "
                "use a checkpoint from before the training diverged"
            )
    return model


def state_fingerprint(model: nn.Module) -> str:
    """The digest of all floating-point parameters and buffers: what masks are made for."""
    return fingerprint(_arrays(model.state_dict()))


def weights_fingerprint(model: nn.Module, replaced: Mapping[str, npt.NDArray[np.float32]] | None = None) -> str:
    """The digest of all floating-point parameters, some `replaced` by new values: unchanged where masks leave them frozen."""
    return fingerprint({**_arrays(dict(model.named_parameters())), **(replaced or {})})


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.floating]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_safetensors(path.read_bytes()), path)
        except SafetensorError as error:
            raise ArtifactError(f"checkpoint {path} is damaged or not a safetensors file ({error}); copy it again") from error
    refuse_bomb(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise many types
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ArtifactError(
                f"checkpoint {path} holds pickled Python objects, which could run code and are not loaded; save the "
                "weights alone: torch.save(model.state_dict(), path), or safetensors.torch.save_file"
            ) from error
        # torch's own message advises to load the file in the way that runs what is in it, so only its kind is repeated
        kind = type(error).__name__
        raise ArtifactError(f"checkpoint {path} is damaged or not written by torch.save ({kind}); copy it again") from error
    return _unwrapped(content, path)


def _unwrapped(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTING if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"checkpoint {path} holds {type(content).__name__}, not a state dict of named tensors")
    foreign = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise UsageError(
            f"checkpoint {path}: {', '.join(foreign[:_MAX_NAMED])}: not a tensor; save model.state_dict(), or put it under "
            "the key 'state_dict'"
        )
    return {str(name): value for name, value in content.items()}


def _without_wrapper(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The state without a wrapper's prefix, unless the network's own names begin with it."""
    for prefix in _WRAPPERS:
        own = any(name.startswith(prefix) for name in model.state_dict())
        if not own and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_fit(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    # Of weights shared between modules, safetensors.torch.save_model stores one copy.
    stored = {tensor.data_ptr() for name, tensor in own.items() if name in state and tensor.numel()}
    missing = [n for n in own if n not in state and not n.endswith(_COUNTER) and own[n].data_ptr() not in stored]
    unexpected = [name for name in sorted(state) if name not in own and not name.endswith(_COUNTER)]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the network's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:_MAX_NAMED])}{f' and {len(names) - _MAX_NAMED} more' if len(names) > _MAX_NAMED else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
        if names
    ]
    if problems:
        raise UsageError(
            f"checkpoint {path} does not fit the network ({'; '.join(problems)}); model.factory must build the network that "
            "was trained"
        )
