import re

import numpy as np
import pytest
import torch

from masksparse_deploy.core.config import MaskOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.attach import attach_masks
from masksparse_deploy.learn.foreign import import_foreign
from masksparse_deploy.learn.requested import requested_pattern
from tests.learn.networks import shallow_net


def wide_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(32, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.parametrize("text", ["2:4", "T2:4"])
def test_the_method_transposable_asks_for_a_transposable_pattern(text: str) -> None:
    assert requested_pattern(MaskOptions(method="transposable", pattern=text)) == NMPattern(n=2, m=4, transposable=True)


@pytest.mark.parametrize("method", ["magnitude", "adaprune", "sparse-training"])
@pytest.mark.parametrize("text", ["2:4", "T2:4"])
def test_other_methods_find_what_the_pattern_says(method: str, text: str) -> None:
    assert str(requested_pattern(MaskOptions.model_validate({"method": method, "pattern": text}))) == text


@pytest.mark.parametrize("method", ["auto", "gumbel", "scores"])
def test_methods_that_choose_group_by_group_find_no_transposable_masks(method: str) -> None:
    message = (
        f"mask.pattern T4:8 asks for transposable masks, and method '{method}' does not find any; use transposable, adaprune "
        "or sparse-training, or mask.pattern 4:8"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        requested_pattern(MaskOptions.model_validate({"method": method, "pattern": "T4:8"}))


def test_a_training_loop_of_ones_own_learns_no_transposable_masks() -> None:
    model = shallow_net()
    with pytest.raises(
        UsageError, match=re.escape("pattern T2:4: 'scores' chooses each group by itself and finds no transpos")
    ):
        attach_masks(model, torch.zeros(1, 3, 8, 8), pattern="T2:4")
    assert all(not hasattr(module, "parametrizations") for module in model.modules())


def test_the_widest_pattern_needs_no_codebook_before_it_is_refused() -> None:
    # C(32, 16) rows would be 601 million.
    with pytest.raises(UsageError, match=re.escape("601080390, more than the 256 that it can hold; use method 'scores'")):
        attach_masks(wide_net(), torch.zeros(1, 32, 4, 4), pattern="16:32", method="gumbel")


def test_an_import_does_not_look_for_transposable_zeros(tmp_path: object) -> None:
    options = ModelOptions(factory="tests.learn.networks:shallow_net", weights="missing")
    with pytest.raises(
        UsageError, match=re.escape("pattern T2:4: an import looks for zeros along one axis; give 2:4, bake the")
    ):
        import_foreign(options, image_shape=(3, 8, 8), pattern="T2:4", folder=tmp_path, out=tmp_path)  # type: ignore[arg-type]


def test_scores_learn_patterns_up_to_32() -> None:
    with attach_masks(wide_net(), torch.zeros(1, 32, 4, 4), pattern="16:32") as masks:
        (mask,) = masks.masks().values()
    assert np.array_equal(mask.keep.sum(1), np.full((4, 1, 1), 16))
