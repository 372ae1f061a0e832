"""NVIDIA's parser on what the bake stage writes: every sample network in every precision."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.bake.run import SPARSE_NAME, bake
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.engine.preflight import preflight
from tests.models.cifar_resnet import resnet20
from tests.models.tiny_cnn import magnitude_masks
from tests.requirements import REPOSITORY, requires

# BF16 convolutions came with operator set 22.
OPSETS = {"bf16": 22}
STORED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def digits_net() -> nn.Module:
    path = REPOSITORY / "samples" / "digits" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.digits_net()
    return net


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (resnet20().eval(), (3, 32, 32)) if name == "resnet20" else (digits_net().eval(), (1, 8, 8))


def masked_layers(model: nn.Module) -> tuple[str, ...]:
    """The convolutions with a multiple of 4 input channels."""
    return tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.in_channels % 4 == 0
    )


@requires(tensorrt_rtx=True)
@pytest.mark.slow
@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", ["digits", "resnet20"])
def test_every_claim_holds_as_the_parser_sees_it(tmp_path: Path, name: str, precision: str) -> None:
    model, shape = network(name)
    masks = magnitude_masks(model, masked_layers(model))
    images = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)
    report = bake(
        model,
        masks,
        BakeOptions(precision=precision, opset=OPSETS.get(precision, 20), calibration_count=len(images)),
        example_shape=shape,
        source_sha256=masks.source_sha256,
        out=tmp_path,
        probe_images=images[:2],
        calibration=images,
    )
    seen = preflight(tmp_path / SPARSE_NAME, build=True)
    assert seen.ok and seen.built, (seen.errors, [layer for layer in seen.layers if layer.agrees is False])
    claimed = [layer for layer in seen.layers if layer.claimed]
    assert len(claimed) == len(report.layers) == len(masks.layers)
    assert {layer.dtype for layer in claimed} == {STORED[precision]}
