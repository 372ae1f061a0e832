"""The options of every stage: one small frozen class each, with safe defaults. The command line reads its defaults here."""

import re
from typing import Any, Literal

import pydantic

__all__ = [
    "NO_TACTIC_SOURCES",
    "NO_TIMING_CACHE",
    "BakeOptions",
    "CertifyOptions",
    "DataOptions",
    "DeployConfig",
    "EngineOptions",
    "ForecastOptions",
    "Gates",
    "MaskOptions",
    "ModelOptions",
    "Options",
    "ProfileOptions",
    "RewriteOptions",
    "SelectOptions",
    "UpdateOptions",
]

LARGEST_SEED = 2**32 - 1
NO_TIMING_CACHE = "none"
NO_TACTIC_SOURCES = "none"


def _option(default: Any, description: str, **limits: Any) -> Any:
    """A field whose description is also the help text of its command-line option."""
    return pydantic.Field(default, description=description, **limits)


class Options(pydantic.BaseModel):
    """Frozen; unknown keys are refused; types are not converted (an integer may stand for a float)."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelOptions(Options):
    """Where the trained model comes from."""

    factory: str = _option(..., "module:callable returning a torch.nn.Module; from the configuration's folder or the path")
    weights: str = _option(..., "state dict of the trained model: .safetensors, or .pth")


class DataOptions(Options):
    """Labelled training and test images; the forms are those of core.samples.read_samples."""

    train: str = _option(..., "training images: an .npz file, a folder of images, or module:callable")
    test: str = _option(..., "test images: an .npz file, a folder of images, or module:callable")
    validation: str | None = _option(None, "images that choices in learning are decided on; default: the test images")
    mean: tuple[float, ...] | None = _option(None, "mean of each channel of 8-bit images, on the scale 0 to 1", strict=False)
    std: tuple[float, ...] | None = _option(None, "standard deviation of each channel of 8-bit images", strict=False)
    image_size: int | None = _option(None, "height and width that images of a folder are brought to", gt=0)
    train_limit: int | None = _option(None, "use only the first so many training images", gt=0)
    test_limit: int | None = _option(None, "use only the first so many test images", gt=0)


class MaskOptions(Options):
    """How masks are chosen."""

    pattern: str = _option(
        "2:4",
        "N:M, N weights kept of every M along the input channels; TN:M: along the outputs too; auto:M: what zeros admit; "
        "1xN@P, as 1x32@0.5: a share P of the blocks of N output channels is pruned",
    )
    method: Literal[
        "auto",
        "magnitude",
        "gumbel",
        "scores",
        "transposable",
        "adaprune",
        "sparse-training",
        "subp",
        "blocks",
        "positions",
    ] = _option(
        "scores",
        "how masks are chosen; weights stay frozen but with adaprune, sparse-training, subp, blocks and positions; auto: the "
        "first stage that passes the accuracy gate",
    )
    solver: Literal["exact", "greedy", "two-approximation", "entropy"] = _option("exact", "how transposable masks are found")
    pad_channels: bool = _option(
        False, "mask layers whose input channels are no multiple of M too; the ONNX file gets zero channels there"
    )
    permute: bool = _option(False, "reorder channels first, so that more magnitude is kept; the dense function stays")
    batch_norm: bool = _option(True, "batch-norm statistics follow the masks: estimated anew, or updated while learning")
    include: tuple[str, ...] = _option(("*",), "globs of the layers to mask", strict=False)
    exclude: tuple[str, ...] = _option((), "globs of the layers to leave dense; wins over include", strict=False)
    assignment: str | None = _option(None, "layers to mask, as 'masksparse select' wrote them: selection.json")
    epochs: int = _option(10, "passes over the training images of a learned method", gt=0)
    max_steps: int | None = _option(None, "end learning after so many steps, if that comes first", gt=0)
    batch_size: int = _option(128, "training images that a process handles at once", gt=0)
    accumulate: int = _option(1, "batches whose gradients are summed for one step", gt=0)
    learning_rate: float | None = _option(
        None,
        "peak of the one-cycle schedule (AdamW; SGD where weights train); default: 0.01, with subp and blocks 0.05, with "
        "gumbel and from scratch 0.1",
        gt=0,
    )
    distillation: float = _option(0.5, "weight of the dense model's soft labels in the loss; 1 needs no labels", ge=0, le=1)
    temperature: float = _option(2.0, "softmax temperature of the distillation", gt=0)
    augment: Literal["none", "shift", "shift-mirror"] = _option("none", "random shifts by up to an eighth, and mirroring")
    autocast: Literal["none", "bfloat16", "float16"] = _option("none", "reduced precision while learning")
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where learning runs; auto: a GPU where there is one")
    checkpoint_steps: int = _option(1000, "save the state of learning after so many steps, and after every epoch", gt=0)
    tensorboard: bool = _option(False, "write the course of learning for TensorBoard, into the folder tensorboard")
    recalibrate: bool | None = _option(
        None,
        "estimate batch-norm statistics again after learning; default: if that helps validation images; without any, always "
        "with gumbel, and with adaprune if answers to training images come closer to the dense network's",
    )
    calibration_count: int = _option(2000, "training images for batch-norm statistics, and for adaprune", gt=0)
    mask_steps: int = _option(40, "with sparse-training, choose the masks anew after so many steps", gt=0)
    reconstruction: Literal["closed-form", "iterative"] = _option(
        "closed-form", "how adaprune fits the kept weights to the dense layer's outputs"
    )
    ridge: float = _option(1e-3, "of adaprune's least squares, as a share of the mean diagonal entry", gt=0)
    initialization: Literal["pretrained", "scratch"] = _option(
        "pretrained", "with sparse-training, subp and blocks, start at the trained weights, or at fresh ones"
    )
    criterion: Literal["bpar", "l1"] = _option(
        "bpar", "with subp, what blocks are scored by: redundancy too, or L1 norms alone"
    )
    channel_block: Literal["auto", 1, 4, 8, 16, 32] = _option(
        "auto", "bring kept channels of 1xN layers to multiples of this, the target's channel block; auto: this machine's"
    )
    schedule_start: float = _option(
        0.0, "with subp, share of the steps after which the last regrown blocks begin to stay pruned", ge=0, lt=1
    )
    schedule_end: float = _option(0.75, "with subp, share of the steps after which no block is regrown", gt=0, le=1)
    position_rate: float = _option(
        0.0,
        "share of the output positions of every masked convolution that is not computed; with methods that train",
        ge=0,
        lt=1,
    )
    position_maps: Literal["propagated", "independent"] = _option(
        "propagated", "layers of one resolution share a map of positions, all from one at the input's; or each draws its own"
    )
    position_selection: Literal["held-out", "training-loss"] = _option(
        "held-out", "how the map of positions is chosen: best of several on images held out, or the step of the lowest loss"
    )
    position_ramp_end: float = _option(
        0.25,
        "share of the steps, above 0.1, after which the whole rate is dropped, by one map",
        gt=0.1,
        lt=1,
    )
    position_pointwise: bool = _option(False, "mask positions of 1x1 convolutions too")
    seed: int = _option(0, "seed of everything random in learning", ge=0, le=LARGEST_SEED)

    @pydantic.field_validator("pattern", mode="before")
    @classmethod
    def _not_sexagesimal(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 2:4 as the base-60 number 124.
        if isinstance(value, int):
            raise ValueError('write the pattern in quotes, as "2:4": without them YAML reads it as a base-60 number')
        return value


class SelectOptions(Options):
    """Which layers are worth a mask."""

    points: float | None = _option(
        None, "largest accuracy drop, in percentage points; default: 1, or no limit where targets are given", ge=0
    )
    targets: str | None = _option(
        None, "file with the layers that get a sparse kernel on the target: names or globs, one a line, or a JSON list"
    )


class BakeOptions(Options):
    """The ONNX file."""

    precision: Literal["fp32", "fp16", "bf16", "int8"] = _option(
        "fp32", "precision of weights and arithmetic in the file; int8: Q/DQ with static calibration"
    )
    opset: Literal[17, 18, 19, 20, 21, 22, 23] = _option(20, "ONNX operator set; TensorRT 8.6 reads 17 at most")
    calibration_count: int = _option(500, "images that ranges are measured and INT8 scales are calibrated on", gt=0)
    calibration_method: Literal["minmax", "entropy", "percentile"] = _option("minmax", "how INT8 scales are chosen")


class RewriteOptions(Options):
    """How layers with 1xN blocks or masked positions are brought into a form that runs faster."""

    mode: Literal["measured", "always", "never"] = _option(
        "measured", "rewrite the layers that get faster by it on this machine; or all; or none"
    )
    rounds: int = _option(20, "rounds of timing each form of a layer, and each network, in random order", ge=10)
    smallest_gain: float = _option(
        0.02, "leave a layer dense that the rewrite makes faster by less than this share", ge=0, lt=1
    )
    cache: str | None = _option(
        None, "file that keeps the times of layers, by device and version; default: rewrite_times.json in the output folder"
    )
    seed: int = _option(0, "seed of the order of timing", ge=0, le=LARGEST_SEED)


class ForecastOptions(Options):
    """What is forecast before any training, and when it is too little."""

    precision: Literal["fp16", "int8"] | None = _option(
        None, "precision that the network will be deployed in; default: that of the ONNX file"
    )
    threshold: float = _option(1.05, "smallest speedup that is worth the work", gt=0)
    image: str | None = _option(None, "CHANNELSxHEIGHTxWIDTH of an image, as 3x224x224, for a PyTorch model")
    rounds: int = _option(20, "rounds of timing each engine, in random order", ge=10)
    inferences_per_round: int = _option(10, "timed inferences of each engine in a round", gt=0)
    confidence: float = _option(0.95, "coverage of the intervals", gt=0.5, lt=1)
    trial: bool = _option(True, "also time the whole network with half of its weights cut, without regard to accuracy")
    cache: str | None = _option(
        None, "file that keeps times by device, versions and shape; default: forecast_times.json in the output folder"
    )
    seed: int = _option(0, "seed of the order of timing", ge=0, le=LARGEST_SEED)

    @pydantic.field_validator("image")
    @classmethod
    def _is_image(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", value):
            raise ValueError("write the image as CHANNELSxHEIGHTxWIDTH, as 3x224x224")
        return value


class EngineOptions(Options):
    """What changes the engine; what ONNX Runtime's own providers do not know has no meaning there."""

    backend: Literal["auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"] = _option(
        "onnxruntime", "auto: TensorRT where it works, else ONNX Runtime on the CPU"
    )
    batch: int = _option(64, "samples in an inference; the engine is tuned for it", gt=0)
    threads: int = _option(0, "CPU threads; 0: all cores", ge=0)
    workspace_mib: int = _option(1024, "scratch memory that TensorRT may use, in MiB", gt=0)
    smallest_batch: int = _option(1, "smallest batch that an engine of a dynamic batch must take (TensorRT)", gt=0)
    largest_batch: int | None = _option(None, "largest batch it must take (TensorRT); default: the batch", gt=0)
    smallest_image: str | None = _option(
        None, "smallest HEIGHTxWIDTH, as 192x192, for files that leave them open (TensorRT); default: the tuned one"
    )
    tuned_image: str | None = _option(None, "HEIGHTxWIDTH that TensorRT tunes for, where the file leaves them open")
    largest_image: str | None = _option(None, "largest HEIGHTxWIDTH it must take (TensorRT); default: the tuned one")
    sparse_tactics: bool = _option(True, "whether sparse tactics are allowed (TensorRT)")
    tactic_sources: tuple[str, ...] | None = _option(
        None, "libraries TensorRT takes kernels from, as EDGE_MASK_CONVOLUTIONS; default: TensorRT's choice", strict=False
    )
    optimization_level: int | None = _option(
        None, "TensorRT's builder optimisation level: higher builds longer for a faster engine; default: TensorRT's", ge=0, le=5
    )
    refit: bool = _option(False, "whether the engine takes new weights later, by 'masksparse refit' (TensorRT)")
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = _option(
        "none", "the other GPUs that the engine must run on too; costs speed (TensorRT)"
    )
    version_compatible: bool = _option(False, "whether newer versions of TensorRT must load the engine too; costs speed")
    timing_cache: str | None = _option(
        None,
        "folder that keeps the times of TensorRT's kernels between builds; none: time them all; default: timing_cache beside "
        "the engine",
    )

    @pydantic.field_validator("smallest_image", "tuned_image", "largest_image")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
            raise ValueError("write the size as HEIGHTxWIDTH in pixels, as 224x224")
        return value

    @pydantic.field_validator("smallest_batch")
    @classmethod
    def _is_smallest(cls, value: int, info: pydantic.ValidationInfo) -> int:
        if value > info.data.get("batch", value):
            raise ValueError(f"must be at most the batch of {info.data['batch']}")
        return value

    @pydantic.field_validator("largest_batch")
    @classmethod
    def _is_largest(cls, value: int | None, info: pydantic.ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("batch", value):
            raise ValueError(f"must be at least the batch of {info.data['batch']}")
        return value


class ProfileOptions(Options):
    """How long and how often to time."""

    rounds: int = _option(100, "rounds, each timing both engines in random order", ge=10)
    inferences_per_round: int = _option(3, "timed inferences of each engine in a round", gt=0)
    warmup: int = _option(10, "untimed inferences of each engine before", ge=1)
    confidence: float = _option(0.95, "coverage of the interval of the speedup", gt=0.5, lt=1)
    builds: int = _option(
        3, "builds of each engine, where they differ (TensorRT): the interval covers that; 4 or more reach 95 %", ge=1, le=20
    )
    cuda_graph: bool = _option(
        False, "replay inferences as CUDA graphs, which leaves out what launching kernels costs (TensorRT)"
    )
    seed: int = _option(0, "seed of the order", ge=0, le=LARGEST_SEED)


class CertifyOptions(Options):
    """How much to prove, and how tightly."""

    sample_count: int = _option(100, "test images for the bounds that hold for given samples", gt=0)
    grid: int = _option(32, "N of the N x N frequency grid of the norm bounds: larger is tighter and slower", ge=4, le=512)
    reuse_norms: bool = _option(True, "keep the norms in a file beside the certificate and take them from there next time")


class UpdateOptions(Options):
    """New weights under the same masks."""

    statistics: Literal["auto", "reestimate", "keep", "checkpoint"] = _option(
        "auto",
        "batch-norm statistics of the sparse network: estimated again on training images, kept as the mask set has them, or "
        "those of the new checkpoint; auto: estimated again if the mask set has any",
    )
    growth: float = _option(0.1, "share by which the old bounds may grow within the budget", gt=0)
    relearn_points: float = _option(
        2.0, "learn masks again once what they keep of the weights' norm, over the best masks', has fallen so many points", ge=0
    )


class Gates(Options):
    """What the user demands before deployment."""

    accuracy_drop_points: float = _option(1.0, "largest accuracy drop on the test set, in percentage points", ge=0)
    flip_rate: float = _option(0.05, "largest share of test images whose top-1 changes", ge=0, le=1)
    layerwise_violations: int = _option(0, "layers that may leave their bound", ge=0)
    latency_ratio: float | None = _option(
        None, "smallest speedup, the dense engine's time over the sparse engine's; default: any", gt=0
    )
    sparse_layers: int | None = _option(None, "fewest masked layers that must run a sparse tactic; default: any number", ge=1)
    sparse_layer_share: float | None = _option(
        None, "smallest share of the masked layers that must run a sparse tactic; default: any", gt=0, le=1
    )
    certified_share: float | None = _option(
        None, "smallest share of the certificate's samples whose class is proved to stay; default: any", gt=0, le=1
    )
    require_interval: bool = _option(False, "the ends of the confidence intervals must meet the gates too")
    confidence: float = _option(0.95, "coverage of the intervals", gt=0.5, lt=1)
    conformal_confidence: float = _option(
        0.95, "probability with which a fresh image stays within the quantile of the deviation", gt=0.5, lt=1
    )
    conformal_share: float = _option(0.5, "share of the test images that this quantile is taken from", gt=0, lt=1)
    conformal_seed: int = _option(0, "seed of the draw of those images", ge=0, le=LARGEST_SEED)
    conformal_separate: bool = _option(False, "decide the gates of accuracy and changed predictions on the other images only")


class DeployConfig(Options):
    """A whole configuration file. Relative paths start at the file's folder; `out` starts at the working folder."""

    model: ModelOptions
    data: DataOptions
    mask: MaskOptions = MaskOptions()
    bake: BakeOptions = BakeOptions()
    rewrite: RewriteOptions = RewriteOptions()
    engine: EngineOptions = EngineOptions()
    profile: ProfileOptions = ProfileOptions()
    certify: CertifyOptions = CertifyOptions()
    gates: Gates = Gates()
    out: str
