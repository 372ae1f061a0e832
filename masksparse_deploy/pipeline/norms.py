"""Certificates of files with what speeds up their norms: those of the last run, and a GPU if there is one."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import UNIT_ROUNDOFF, Deficits
from masksparse_deploy.certify.norms.store import NormStore
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.driver import query_driver

__all__ = ["available_deficits", "torch_deficits", "write_certificate"]


def write_certificate(
    dense: Path,
    sparse: Path,
    samples: Samples,
    options: CertifyOptions,
    *,
    out: Path,
    remark: Callable[[str], None],
    progress: Progress,
) -> Certificate:
    """`certify` two files and write the certificate to `out`, with its norms beside it where the options say so.

    Args:
        dense: ONNX file of the dense network.
        sparse: its masked twin.
        samples: images as the network takes them.
        options: of the stage.
        out: the certificate; that of certificate.json has its norms in certificate.norms.json.
        remark: told why the norms of the last run are ignored, if they are.
        progress: called as the work goes on.

    Raises:
        UsageError, ArtifactError: as `certify`.
        OutputError: a file cannot be written.
    """
    store = NormStore(out.with_name(f"{out.stem}.norms.json")) if options.reuse_norms else None
    if store is not None and store.remark is not None:
        remark(store.remark)
    norms = NormCache(grid=options.grid, store=store, deficits=available_deficits())
    certificate = certify(dense, sparse, samples, options, norms=norms, progress=progress)
    certificate.write(out)
    if store is not None:
        store.save()
    return certificate


def available_deficits() -> Deficits | None:
    """`torch_deficits` on the GPU, None where there is no GPU, or no torch that sees it."""
    if query_driver().device is None or importlib.util.find_spec("torch") is None:
        return None
    torch: Any = require("torch", needed_for="norms on the GPU")
    return torch_deficits("cuda") if torch.cuda.is_available() else None


def torch_deficits(device: str) -> Deficits:
    """`Deficits` on a device of torch, by factorisations L L* of a whole stack, whose residual A - L L* is computed as well.

    L L* has no negative eigenvalue, whatever L is, so the smallest eigenvalue of A is at least -||A - L L*||_F. That holds
    however the device factorises; its product L L* is taken to have the rounding of sums in any order.

    Raises:
        MachineError: torch is missing.
    """
    torch: Any = require("torch", needed_for="norms on the GPU")

    def deficits(matrices: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        stack = torch.from_numpy(matrices).to(device)
        factors, failed = torch.linalg.cholesky_ex(stack)
        residual = torch.linalg.matrix_norm(stack - factors @ factors.mH)
        # ||L||_F^2 bounds the sums of 2 n products; twice their rounding covers that of the difference and of its norm
        rounding = 8 * (matrices.shape[1] + 4) * UNIT_ROUNDOFF * torch.linalg.matrix_norm(factors) ** 2
        found: npt.NDArray[np.float64] = torch.where(failed == 0, residual + rounding, torch.inf).cpu().numpy()
        return found

    return deficits
