from pathlib import Path

import pytest

from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions, SelectOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.positions.requested import check_position_options
from masksparse_deploy.learn.selection import select

WEIGHTS = "is about masks of weights, and method 'positions' masks none; remove it, or use sparse-training, subp or blocks"


@pytest.mark.parametrize("method", ["positions", "sparse-training", "subp", "blocks"])
def test_methods_that_train_weights(method: str) -> None:
    check_position_options(MaskOptions(method=method, position_rate=0.2))


@pytest.mark.parametrize("method", ["auto", "magnitude", "gumbel", "scores", "transposable", "adaprune"])
def test_methods_that_do_not(method: str) -> None:
    check_position_options(MaskOptions(method=method))
    message = (
        f"mask.position_rate 0.2 leaves output positions out, for which the weights must train, and method {method!r} keeps "
        "them; use positions, sparse-training, subp or blocks, or mask.position_rate: 0"
    )
    with pytest.raises(UsageError) as caught:
        check_position_options(MaskOptions(method=method, position_rate=0.2))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_rate": 0.0}, "method 'positions' leaves output positions out, and mask.position_rate is 0; set the share"),
        ({"pattern": "1x32@0.5"}, f"mask.pattern 1x32@0.5 {WEIGHTS}"),
        ({"permute": True}, f"mask.permute True {WEIGHTS}"),
        ({"pad_channels": True}, f"mask.pad_channels True {WEIGHTS}"),
        ({"assignment": "selection.json"}, f"mask.assignment selection.json {WEIGHTS}"),
    ],
)
def test_options_that_do_not_go_with_the_method(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_position_options(MaskOptions(**{"method": "positions", "position_rate": 0.2, **change}))
    assert str(caught.value).startswith(message)


def test_select_is_for_masks_of_weights(tmp_path: Path) -> None:
    model, data = ModelOptions(factory="no:network", weights="none"), DataOptions(train="none", test="none")
    mask = MaskOptions(method="positions", position_rate=0.2)
    with pytest.raises(UsageError, match="method 'positions' masks no weights, and select measures layers under masks of"):
        select(model, data, mask, SelectOptions(), folder=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
