"""What a test needs from the machine; a test whose needs are not met is skipped, and says which."""

import os
import shutil
from pathlib import Path

import pytest

from masksparse_deploy.core.optional import is_installed
from masksparse_deploy.engine.driver import query_driver

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def requires(
    *,
    gpu: bool = False,
    tensorrt: bool = False,
    tensorrt_rtx: bool = False,
    shared_data: bool = False,
    chromium: bool = False,
) -> pytest.MarkDecorator:
    """Skip a test unless the machine has all that it names; the reason lists everything that is missing.

    MASKSPARSE_REQUIRE_GPU=1, MASKSPARSE_REQUIRE_CHROMIUM=1 and MASKSPARSE_REQUIRE_TENSORRT_RTX=1 turn such a skip into a
    failure: the test then runs.
    """
    unmet = []
    gpu_must_be_there = os.environ.get("MASKSPARSE_REQUIRE_GPU") == "1"
    if gpu and not gpu_must_be_there and (answer := query_driver()).device is None:
        unmet.append(answer.reason)
    if tensorrt and not gpu_must_be_there and not is_installed("tensorrt"):
        unmet.append("TensorRT is not installed")
    if tensorrt_rtx and os.environ.get("MASKSPARSE_REQUIRE_TENSORRT_RTX") != "1" and not is_installed("tensorrt_rtx"):
        unmet.append("tensorrt-rtx is not installed")
    if shared_data and not SHARED_DATA.is_dir():
        unmet.append("the acceptance data (../shared/data) is not here")
    if chromium and os.environ.get("MASKSPARSE_REQUIRE_CHROMIUM") != "1" and find_chromium() is None:
        unmet.append("no chromium on the path (Debian package: chromium)")
    return pytest.mark.skipif(bool(unmet), reason="; ".join(unmet))


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
