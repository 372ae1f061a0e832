"""Made-up engines and profiles, for looking at reports."""

import numpy as np

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.gpu_state import GpuReading, GpuState
from masksparse_deploy.core.artifacts.timing import (
    BuildTime,
    EndToEnd,
    EngineRatio,
    EngineRole,
    Latency,
    LayerTime,
    ProfileReport,
    RunConditions,
    Speedup,
)
from tests.report.made_up import LAYERS, digest


def make_engine(name: str, *, gpu: bool = False) -> EngineArtifact:
    def layer(index: int, node: str) -> EngineLayer:
        if gpu and index % 3:
            return EngineLayer(
                name=node,
                onnx_nodes=(node,),
                tactic="made_up_sparse_fprop_kernel",
                is_sparse=True,
                reason="chosen by the builder",
            )
        reason = "the dense kernel was faster" if gpu else "ONNX Runtime has no 2:4 kernels"
        return EngineLayer(name=node, onnx_nodes=(node,), tactic="Conv", is_sparse=False, reason=reason)

    return EngineArtifact(
        backend="tensorrt" if gpu else "onnxruntime",
        plan=f"{name}.plan.onnx",
        plan_sha256=digest(f"{name} plan"),
        source_sha256=digest(name),
        precision="fp32",
        options={"batch": 64, "threads": 0},
        versions={"tensorrt" if gpu else "onnxruntime": "1.2.3"},
        device=DeviceFacts(
            kind="cuda" if gpu else "cpu",
            name="Made-up GPU" if gpu else "Made-up CPU @ 3.00GHz",
            details={"architecture": "x86_64", "hardware_threads": "2"},
        ),
        layers=tuple(layer(index, name) for index, (name, *_) in enumerate(LAYERS)),
        exposed=(),
        sparse_kernels="6 of 9 masked layers run sparse kernels"
        if gpu
        else "this runtime has no 2:4 kernels: it multiplies the zeros too",
    )


def make_latency(median_ms: float, seed: int) -> Latency:
    generator = np.random.default_rng(seed)
    times = median_ms * (1 + 0.02 * generator.gamma(2.0, 1.0, 300))
    times[generator.integers(0, 300, 3)] *= 1.7
    rounded = tuple(round(float(value), 6) for value in times)
    return Latency(
        median_ms=float(np.median(rounded)),
        p90_ms=float(np.quantile(rounded, 0.9)),
        p99_ms=float(np.quantile(rounded, 0.99)),
        mean_ms=float(np.mean(rounded)),
        throughput_per_s=64_000 / float(np.mean(rounded)),
        samples_ms=rounded,
    )


def make_profile(
    ratio: float = 1.004, half_width: float = 0.012, invalid_because: tuple[str, ...] = (), *, gpu: bool = False
) -> ProfileReport:
    engine = make_engine("sparse", gpu=gpu)

    def speedup(center: float) -> Speedup:
        return Speedup(ratio=center, interval=Interval(low=center - half_width, high=center + half_width, confidence=0.95))

    return ProfileReport(
        dense_engine_sha256=make_engine("dense", gpu=gpu).digest,
        sparse_engine_sha256=engine.digest,
        backend=engine.backend,
        device=engine.device.name,
        dense=make_latency(1.92, 1),
        sparse=make_latency(1.92 / ratio, 2),
        speedup=speedup(ratio),
        control=speedup(0.998),
        sparse_kernels=engine.sparse_kernels,
        conditions=RunConditions(
            batch=64,
            threads=2,
            warmup_count=10,
            round_count=100,
            inferences_per_round=3,
            seed=0,
            details={"clock_resolution_ns": "41", "load_average": "0.8"},
        ),
        invalid_because=invalid_because,
    )


def make_gpu_profile(build_count: int = 3) -> ProfileReport:
    """As of three engines on a GPU, with all that is recorded there."""
    plain = make_profile(1.31, gpu=True)
    pairs: tuple[tuple[EngineRole, EngineRole, float], ...] = (
        ("dense", "sparse", 1.31),
        ("forbidden", "sparse", 1.29),
        ("dense", "forbidden", 1.01),
    )
    ratios = tuple(
        EngineRatio(
            slower=slower,
            faster=faster,
            ratio=ratio,
            interval=Interval(low=ratio - 0.04, high=ratio + 0.04, confidence=0.9),
            conclusion="not told apart" if ratio < 1.04 else "faster",
            of_builds=tuple(ratio + 0.01 * step for step in range(-3, 4)) if build_count > 1 else (ratio,),
        )
        for slower, faster, ratio in pairs
    )
    roles: tuple[EngineRole, ...] = ("dense", "forbidden", "sparse")
    builds = tuple(
        BuildTime(engine=role, number=number, engine_sha256="a" * 64, median_ms=1.5, sparse_kernels="3 of 9 layers")
        for role in roles
        for number in range(1, build_count + 1)
    )
    layers = tuple(
        LayerTime(
            engine=role, name=name, onnx_nodes=nodes, tactic=f"{role}_kernel" if nodes else "", median_ms=ms, share=ms / 1.5
        )
        for role in roles
        for name, nodes, ms in (("conv + relu", ("node_conv", "node_relu"), 1.2), ("copy <format>", (), 0.3))
    )
    reading = GpuReading(
        when="during",
        sm_clock_mhz=1755,
        memory_clock_mhz=2619,
        temperature_c=61,
        power_w=412.0,
        clock_limits=("power cap",),
        other_process_count=None,
    )
    state = GpuState(
        driver_version="580.82",
        highest_sm_clock_mhz=1980,
        highest_memory_clock_mhz=2619,
        power_limit_w=700.0,
        persistence_mode=True,
        mig=None,
        readings=(reading, reading.model_copy(update={"when": "end", "sm_clock_mhz": 1500, "clock_limits": None})),
    )
    return plain.model_copy(
        update={
            "clock": "CUDA events",
            "forbidden": make_latency(1.48, 3),
            "ratios": ratios,
            "builds": builds,
            "end_to_end": EndToEnd(dense=plain.dense, sparse=plain.sparse, speedup=plain.speedup),
            "layers": layers,
            "gpu": state,
        }
    )
