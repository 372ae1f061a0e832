"""What works on this machine, for the console."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.engines import BackendStatus

__all__ = ["doctor_table", "gpu_lines"]


def gpu_lines(statuses: Sequence[BackendStatus]) -> list[str]:
    """What the driver says of the GPU, and what that means for sparse kernels and for timing."""
    device = next((status.device for status in statuses if status.device is not None and status.device.kind == "cuda"), None)
    if device is None:
        return ["GPU: none that the driver tells of"]
    facts = device.details
    has_sparse = facts.get("sparse_tensor_cores") == "yes"
    parts = [
        f"compute capability {facts.get('compute_capability', 'unknown')}",
        "sparse tensor cores" if has_sparse else "no sparse tensor cores (8.0 and later have them)",
        f"{facts.get('memory_mib', '?')} MiB",
        f"driver for CUDA {facts.get('cuda_driver', 'unknown')}",
    ]
    lines = [f"GPU: {escape(device.name)}   {', '.join(parts)}"]
    if facts.get("mig") == "yes":
        lines.append("[yellow]a slice of a GPU (MIG):[/] the other slices share its power and clocks, so that times vary")
    if (mode := facts.get("compute_mode", "default")) != "default":
        words = "no process may use it" if mode == "prohibited" else "one process at a time may use it"
        lines.append(f"[yellow]compute mode {escape(mode)}:[/] {words}")
    return lines


def doctor_table(statuses: Sequence[BackendStatus]) -> Table:
    """One row a backend: whether it works, on what, and why not."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("backend", "works", "device", "versions and remedies"):
        table.add_column(column, overflow="fold")
    for status in statuses:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(status.versions.items()))
        device = status.device.name if status.device is not None else "-"
        words = "; ".join(text for text in (status.reason, versions) if text)
        table.add_row(status.backend, "[green]yes[/]" if status.available else "[yellow]no[/]", escape(device), escape(words))
    return table
