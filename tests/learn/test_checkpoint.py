from pathlib import Path

import torch

from masksparse_deploy.learn.checkpoint import decode_state, read_checkpoint, write_checkpoint


def test_a_checkpoint_is_of_one_run_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "learn.checkpoint"
    assert read_checkpoint(path, "a") == b""
    write_checkpoint(path, "a", {"step": 3, "scores": {"w": torch.arange(3.0)}})
    state = decode_state(read_checkpoint(path, "a"))
    assert state["step"] == 3
    assert state["scores"]["w"].tolist() == [0, 1, 2]
    assert read_checkpoint(path, "b") == b""
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:70], whole[:200] + b"x" + whole[201:]):
        path.write_bytes(damaged)
        assert read_checkpoint(path, "a") == b""
