from masksparse_deploy.cli.render_doctor import gpu_lines
from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts
from tests.project import masksparse

FACTS = {"compute_capability": "9.0", "sparse_tensor_cores": "yes", "memory_mib": "81920", "cuda_driver": "12.8"}


def said(name: str = "NVIDIA H100", **details: str) -> str:
    device = DeviceFacts(kind="cuda", name=name, details={**FACTS, **details})
    return "\n".join(gpu_lines([BackendStatus(backend="tensorrt", available=True, reason="", versions={}, device=device)]))


def test_what_the_driver_says_of_a_gpu() -> None:
    expected = "GPU: NVIDIA H100   compute capability 9.0, sparse tensor cores, 81920 MiB, driver for CUDA 12.8"
    assert said(compute_mode="default", mig="no") == expected
    assert "no sparse tensor cores (8.0 and later have them)" in said(sparse_tensor_cores="no")
    assert "a slice of a GPU (MIG)" in said(mig="yes")
    assert "compute mode prohibited:[/] no process may use it" in said(compute_mode="prohibited")
    assert "one process at a time" in said(compute_mode="exclusive process")


def test_every_backend_has_a_row() -> None:
    result = masksparse("doctor")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("GPU: ")
    rows = {line.split()[0] for line in result.stdout.splitlines()[1:] if line[:1].strip()}
    assert {"onnxruntime", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"} <= rows
