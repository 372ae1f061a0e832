from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model

from masksparse_deploy.core.config import ModelOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError, UsageError
from masksparse_deploy.learn.model import load_model, state_fingerprint, weights_fingerprint
from tests.learn.networks import PATH, Zoo, nested_net
from tests.models.tiny_cnn import tiny_cnn

State = dict[str, torch.Tensor]
TINY = "tests.models.tiny_cnn:tiny_cnn"


def options(weights: str, factory: str = TINY) -> ModelOptions:
    return ModelOptions(factory=factory, weights=weights)


def other_state() -> State:
    """Weights that the factory alone does not give."""
    return tiny_cnn(seed=7).state_dict()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", None),
        ("plain.pth", lambda state: state),
        ("nested.pt", lambda state: {"epoch": 3, "state_dict": state}),
        ("optimizer.pt", lambda state: {"model_state_dict": state, "modelopt_state": {}}),
        ("torchvision.pth", lambda state: {"model": state, "optimizer": {}, "epoch": 3}),
        ("parallel.pth", lambda state: {f"module.{name}": value for name, value in state.items()}),
        ("compiled.pth", lambda state: {f"_orig_mod.{name}": value for name, value in state.items()}),
        ("double.pth", lambda state: {n: v.double() if v.is_floating_point() else v for n, v in state.items()}),
    ],
)
def test_loads_every_form_of_a_state_dict(tmp_path: Path, name: str, wrap: Callable[[State], object] | None) -> None:
    state = other_state()
    if wrap is None:
        save_file(state, tmp_path / name)
    else:
        torch.save(wrap(state), tmp_path / name)
    model = load_model(options(name), tmp_path)
    assert state_fingerprint(model) == state_fingerprint(tiny_cnn(seed=7))
    assert not model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["half.pth", "half.safetensors"])
def test_half_precision_is_widened_exactly(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in other_state().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    for key, value in load_model(options(name), tmp_path).state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype))


def test_a_network_may_have_a_part_called_module(tmp_path: Path) -> None:
    save_file(nested_net().state_dict(), tmp_path / "nested.safetensors")
    model = load_model(options("nested.safetensors", f"{PATH}:nested_net"), tmp_path)
    assert state_fingerprint(model) == state_fingerprint(nested_net())


def test_a_weight_shared_between_modules_may_be_stored_once(tmp_path: Path) -> None:
    model = Zoo()
    save_model(model, str(tmp_path / "zoo.safetensors"))
    loaded = load_model(options("zoo.safetensors", f"{PATH}:Zoo"), tmp_path)
    assert state_fingerprint(loaded) == state_fingerprint(model)


def test_loading_leaves_the_global_random_state(tmp_path: Path) -> None:
    save_file(other_state(), tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    load_model(options("model.safetensors"), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def spoiled(change: Callable[[State], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = other_state()
        change(state)
        save_file(state, path)

    return write


def truncated(path: Path) -> None:
    if path.suffix == ".pth":
        torch.save(other_state(), path)
    else:
        save_file(other_state(), path)
    path.write_bytes(path.read_bytes()[:-1000])


class Custom:
    """An object that only pickle can restore."""


FAULTS: list[tuple[str, str, Callable[[Path], object], type[MasksparseError], str]] = [
    ("missing", "no.safetensors", lambda path: None, UsageError, "no.safetensors does not exist"),
    ("truncated safetensors", "m.safetensors", truncated, ArtifactError, "damaged"),
    ("truncated pth", "m.pth", truncated, ArtifactError, "damaged"),
    ("empty pth", "m.pth", lambda path: path.write_bytes(b""), ArtifactError, "damaged"),
    ("a text file", "m.pth", lambda path: path.write_text("weights"), ArtifactError, "damaged"),
    ("pickled objects", "m.pth", lambda path: torch.save({"net": Custom()}, path), ArtifactError, r"model\.state_dict\(\)"),
    ("not a state dict", "m.pth", lambda path: torch.save([1, 2], path), UsageError, "holds list"),
    ("a value that is no tensor", "m.pth", lambda path: torch.save({"a": 1}, path), UsageError, "a: not a tensor"),
    ("missing key", "m.safetensors", spoiled(lambda s: s.pop("fc.bias")), UsageError, r"missing: fc\.bias"),
    (
        "unexpected keys",
        "m.safetensors",
        spoiled(lambda s: s.update({f"x{i}": torch.ones(1) for i in range(5)})),
        UsageError,
        "unexpected: x0, x1, x2 and 2 more",
    ),
    (
        "shape",
        "m.safetensors",
        spoiled(lambda s: s.update({"fc.weight": torch.ones(10, 8)})),
        UsageError,
        r"fc\.weight is \(10, 8\), the network's is \(10, 16\)",
    ),
    (
        "infinite statistics",
        "m.safetensors",
        spoiled(lambda s: s["bn.running_var"].fill_(torch.inf)),
        ArtifactError,
        r"bn\.running_var holds 8 NaN or infinite values of 8",
    ),
]


@pytest.mark.parametrize(("name", "write", "error", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_bad_checkpoint_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], object], error: type[MasksparseError], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(error, match=message) as caught:
        load_model(options(name), tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("not_a_module", "returned str, not a torch.nn.Module"),
        ("raises", "RuntimeError: no such variant"),
        ("labelled_by_network", "without arguments"),
    ],
)
def test_a_bad_factory_is_refused(tmp_path: Path, factory: str, message: str) -> None:
    save_file(other_state(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=message):
        load_model(options("model.safetensors", f"{PATH}:{factory}"), tmp_path)


def test_fingerprints_see_weights_and_only_one_sees_statistics() -> None:
    model, moved, changed = tiny_cnn(), tiny_cnn(), tiny_cnn()
    moved.bn.running_mean.add_(1)
    with torch.no_grad():
        changed.fc.bias.add_(1)
    assert state_fingerprint(moved) != state_fingerprint(model)
    assert weights_fingerprint(moved) == weights_fingerprint(model)
    assert weights_fingerprint(changed) != weights_fingerprint(model)


def test_the_batch_counter_is_no_part_of_the_state() -> None:
    model, counted = tiny_cnn(), tiny_cnn()
    counted.bn.num_batches_tracked.add_(5)
    assert state_fingerprint(counted) == state_fingerprint(model)
