from pathlib import Path
from typing import Any

import pytest
import yaml

from masksparse_deploy.core.config import DeployConfig
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.pipeline.config_file import read_config, read_gates

GOOD: dict[str, Any] = {
    "model": {"factory": "model:net", "weights": "model.safetensors"},
    "data": {"train": "train.npz", "test": "test.npz", "mean": [0.5], "std": [0.25]},
    "mask": {"pattern": "2:4", "exclude": ["stem"]},
    "gates": {"accuracy_drop_points": 1},
    "out": "out/x",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set, or removed for None."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    *sections, key = path.split(".")
    section = content
    for name in sections:
        section = section.setdefault(name, {})
    if value is None:
        del section[key]
    else:
        section[key] = value
    return content


def test_a_good_file_is_read_with_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = read_config(path)
    assert isinstance(config, DeployConfig)
    assert config.mask.exclude == ("stem",)
    assert config.data.mean == (0.5,)
    assert config.gates.accuracy_drop_points == 1.0
    assert config.engine.backend == "onnxruntime"


CASES = [
    ("gates.accuracy_drop", 0.5, "gates.accuracy_drop: unknown key; did you mean 'accuracy_drop_points'?"),
    ("mask.exlude", ["a"], "mask.exlude: unknown key; did you mean 'exclude'?"),
    ("gate", {}, "gate: unknown key; did you mean 'gates'?"),
    ("bake.zzz", 1, "bake.zzz: unknown key; known keys: precision, opset"),
    ("engine.batch", "many", "engine.batch: input should be a valid integer, not 'many'"),
    ("engine.batch", 0, "engine.batch: input should be greater than 0, not 0"),
    ("engine.batch", True, "engine.batch: input should be a valid integer, not True"),
    (
        "mask.method",
        "magic",
        "mask.method: input should be 'auto', 'magnitude', 'gumbel', 'scores', 'transposable', 'adaprune', "
        "'sparse-training', 'subp', 'blocks' or 'positions', not 'magic'",
    ),
    ("mask.pattern", 124, 'mask.pattern: write the pattern in quotes, as "2:4"'),
    ("bake.opset", 13, "bake.opset: input should be 17, 18, 19, 20, 21, 22 or 23, not 13"),
    ("gates.flip_rate", float("nan"), "gates.flip_rate: input should be a finite number"),
    ("model.weights", None, "model.weights: missing (state dict of the trained model"),
    ("out", None, "out: missing"),
    ("model", "resnet", "model: input should be a valid dictionary"),
]


@pytest.mark.parametrize(("key", "value", "message"), CASES, ids=[f"{case[0]}={case[1]}" for case in CASES])
def test_mistakes_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert f"deploy.yaml: {message}" in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump(changed("engine", {"bach": 1, "threads": -1})))
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "deploy.yaml: not valid YAML"),
        ("just text", "holds str, not keys like 'model'"),
        ("", "holds NoneType"),
        ("out: a\nout: b\n", "key 'out' is given twice"),
        ("mask: {pattern: 2:4}\n", "write the pattern in quotes"),
    ],
)
def test_text_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert message in str(caught.value)
    assert "python/" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"configuration .*deploy\.yaml does not exist"):
        read_config(tmp_path / "deploy.yaml")


def test_gates_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "gates": "ci/gates.yaml"}))
    with pytest.raises(UsageError, match=r"file of gates .*ci/gates\.yaml does not exist"):
        read_config(path)
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "gates.yaml").write_text("flip_rate: 0.01\nsparse_layers: 3\n")
    config = read_config(path)
    assert (config.gates.flip_rate, config.gates.sparse_layers, config.gates.accuracy_drop_points) == (0.01, 3, 1.0)
    assert config.gates == read_gates(tmp_path / "ci" / "gates.yaml")
    (tmp_path / "ci" / "gates.yaml").write_text("flip_rat: 0.01\n")
    with pytest.raises(UsageError, match=r"gates\.yaml: flip_rat: unknown key; did you mean 'flip_rate'"):
        read_config(path)
