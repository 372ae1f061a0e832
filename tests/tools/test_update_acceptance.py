import pytest
import torch
import yaml
from safetensors.torch import load_file

from masksparse_deploy.pipeline.config_file import read_config
from tests.project import make_project
from tests.report.updates import make_update
from tools.update_acceptance import fine_tune, tables


def test_the_tables_have_every_bound_and_layer() -> None:
    lines = tables(make_update()).splitlines()
    assert "| dense | 95.00% | 96.00% |" in lines
    assert "| the same masks | 94.00% | 93.00% |" in lines
    assert lines.count("| | end-to-end, data-free | 30 | 25 | 2 |") == 3
    assert "| blocks.0 | 0.0050 | 1 | 1 | 1.01 | 1.03 | 99.00% | 98.50% |" in lines
    assert lines[-1] == "The masks need not be learned again."


@pytest.mark.parametrize("steps", [0, 3])
def test_fine_tuning_moves_weights_and_statistics_by_as_many_steps(tmp_path, steps: int) -> None:
    config = make_project(tmp_path, data=yaml.safe_load("{train: train.npz, test: test.npz}"))
    out = tmp_path / "new.safetensors"
    fine_tune(read_config(config), tmp_path, out, steps=steps, learning_rate=0.01, batch_size=8)
    old, new = load_file(tmp_path / "model.safetensors"), load_file(out)
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == (set(old) if steps else set())
    assert int(new["bn.num_batches_tracked"]) == steps
