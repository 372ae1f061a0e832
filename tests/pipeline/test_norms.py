"""Norms with what speeds them up. The GPU's part runs on CPU tensors here; it has not run on a GPU."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from masksparse_deploy.certify.norms.eigenvalue import largest_eigenvalue
from masksparse_deploy.certify.operator_norm import convolution_norm
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.progress import silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.pipeline import norms
from masksparse_deploy.pipeline.norms import available_deficits, torch_deficits, write_certificate
from tests.certify.norms.test_eigenvalue import grams, indefinite_by_rounding
from tests.certify.test_run import make_samples, small_network, write_pair
from tests.requirements import requires


def test_torch_proves_the_same_norms() -> None:
    kernel = np.random.default_rng(0).standard_normal((40, 36, 3, 3))
    expected = convolution_norm(kernel, padded_size=(9, 9))
    found = convolution_norm(kernel, padded_size=(9, 9), deficits=torch_deficits("cpu"))
    assert found.method == expected.method
    assert found.value == pytest.approx(expected.value, rel=1e-9)


def test_torch_tells_definite_from_indefinite() -> None:
    stack = grams(4, 12)
    level = np.linalg.eigvalsh(stack)[:, -1].max()
    above, below = (factor * level * np.eye(12) - stack for factor in (1.001, 0.999))
    assert (torch_deficits("cpu")(above) < 1e-9 * level).all()
    assert np.isinf(torch_deficits("cpu")(below)).sum() == 1
    bound, _ = largest_eigenvalue([stack], slack=1e-4, deficits=torch_deficits("cpu"))
    assert level <= bound <= level * 1.00011


def test_a_factorisation_of_torch_that_completes_by_rounding_is_within_its_allowance() -> None:
    for matrix, depth in indefinite_by_rounding(100):
        (deficit,) = torch_deficits("cpu")(matrix[None].astype(np.complex128))
        assert deficit >= depth


@pytest.mark.gpu
@requires(gpu=True)
def test_the_gpu_proves_the_same_norms() -> None:
    deficits = available_deficits()
    assert deficits is not None
    kernel = np.random.default_rng(0).standard_normal((64, 64, 3, 3))
    expected = convolution_norm(kernel)
    assert convolution_norm(kernel, deficits=deficits).value == pytest.approx(expected.value, rel=1e-9)


def test_without_a_gpu_or_torch_the_processor_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "query_driver", lambda: SimpleNamespace(device=None))
    assert available_deficits() is None
    monkeypatch.setattr(norms, "query_driver", lambda: SimpleNamespace(device="GPU"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert available_deficits() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available_deficits() is None


def test_the_norms_are_kept_beside_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_pair(tmp_path, small_network("Relu"))
    told: list[str] = []

    def written(name: str, options: CertifyOptions) -> Certificate:
        samples: Samples = make_samples(shape=(4, 7, 7))
        out = tmp_path / "out" / name
        return write_certificate(*files, samples, options, out=out, remark=told.append, progress=silent)

    options = CertifyOptions(sample_count=4, grid=8)
    first = written("certificate.json", options)
    kept = tmp_path / "out" / "certificate.norms.json"
    assert kept.is_file()
    with monkeypatch.context() as patch:
        patch.setattr("masksparse_deploy.certify.operator_norm.evaluate", None)
        assert written("certificate.json", options).to_bytes() == first.to_bytes()
    assert told == []
    kept.write_bytes(b"{")
    assert written("certificate.json", options).to_bytes() == first.to_bytes()
    assert len(told) == 1 and str(kept) in told[0]
    written("other.json", options.model_copy(update={"reuse_norms": False}))
    assert sorted(path.name for path in kept.parent.iterdir()) == ["certificate.json", kept.name, "other.json"]
