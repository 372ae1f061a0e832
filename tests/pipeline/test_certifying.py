"""Certificates of PyTorch networks, exported in memory."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.artifacts.certificate import END_TO_END, HYBRID, LAYERWISE
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.pipeline.certifying import certify_modules
from tests.certify.torch_networks import NETWORKS, masked, residual_net, with_statistics
from tests.requirements import REPOSITORY

OPTIONS = CertifyOptions(sample_count=6, grid=8)
IMAGES = np.random.default_rng(0).standard_normal((8, 3, 11, 11), dtype=np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_manner_are_bounded_to_the_end(name: str) -> None:
    dense = with_statistics(NETWORKS[name]())
    sparse = masked(dense, strength=1e-3)
    certificate = certify_modules(dense, sparse, IMAGES, OPTIONS)
    assert certificate.unsupported == ()
    claims = {claim.name: claim for claim in certificate.claims}
    bounds = [claims[claim].bound or 0.0 for claim in END_TO_END]
    with torch.no_grad():
        images = torch.from_numpy(IMAGES[:6])
        distance = float(
            torch.linalg.vector_norm(dense.double()(images.double()) - sparse.double()(images.double()), dim=1).max()
        )
    # the exporter folds batch norm in float32: a thousandth of the weights that were changed by a thousandth
    assert claims[HYBRID].measured == pytest.approx(distance, rel=0.01)
    assert 0 < distance <= bounds[-1] * 1.01
    assert bounds == sorted(bounds, reverse=True)
    assert claims[LAYERWISE].status == "useful"


def test_activations_as_pytorch_exports_them() -> None:
    activations = (nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Mish(), nn.Softplus(), nn.Softsign(), nn.ELU())
    layers = [layer for activation in activations for layer in (nn.Conv2d(4, 4, 1), activation)]
    dense = with_statistics(nn.Sequential(*layers, nn.PReLU(4), nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)))
    images = np.random.default_rng(0).standard_normal((3, 4, 3, 3), dtype=np.float32)
    # in operator set 18 GELU is written out
    certificate = certify_modules(dense, masked(dense), images, OPTIONS, opset=18)
    assert certificate.unsupported == ()
    bounds = {claim.name: claim.bound for claim in certificate.claims}
    data_free, hybrid = bounds[END_TO_END[0]], bounds[HYBRID]
    assert data_free is not None and hybrid is not None and hybrid < data_free


def test_an_fx_graph_and_an_exported_program_give_what_the_module_gives() -> None:
    dense = with_statistics(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)))
    sparse = masked(dense)
    images = np.random.default_rng(0).standard_normal((3, 4, 5, 5), dtype=np.float32)
    traced = [torch.fx.symbolic_trace(network) for network in (dense, sparse)]
    batch = torch.export.Dim("batch")
    example = (torch.from_numpy(images),)
    programs = [torch.export.export(network, example, dynamic_shapes=({0: batch},)) for network in (dense, sparse)]
    mixed = ((dense, traced[1]), (programs[0], sparse))
    certificates = [certify_modules(*networks, images, OPTIONS) for networks in mixed]
    bounds = [[claim.bound for claim in certificate.claims] for certificate in certificates]
    assert bounds[0] == bounds[1]
    assert all(bound is not None for bound in bounds[0])


def test_networks_that_are_not_the_same_graph_are_refused() -> None:
    with pytest.raises(ArtifactError, match="the two networks do not belong together: "):
        certify_modules(nn.Conv2d(3, 4, 3).eval(), nn.Conv2d(3, 4, 3, stride=2).eval(), IMAGES, OPTIONS)


def test_images_without_channels_are_refused() -> None:
    network = with_statistics(residual_net())
    with pytest.raises(UsageError, match=r"shape \(8, 11, 11\); give float32 images \(count, channels, height, width\)"):
        certify_modules(network, network, IMAGES[:, 0], OPTIONS)


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "certify.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/certify.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" useful")[0].split(" vacuous")[0] for line in printed] == [LAYERWISE, *END_TO_END]
    assert " useful " in printed[-1]  # a change by a thousandth is certified
