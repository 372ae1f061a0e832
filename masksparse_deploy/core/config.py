"""The options of every stage: one small frozen class each, with safe defaults. The command line reads its defaults here."""

from typing import Annotated, Literal

import pydantic

__all__ = [
    "BakeOptions",
    "CertifyOptions",
    "DataOptions",
    "DeployConfig",
    "EngineOptions",
    "Gates",
    "MaskOptions",
    "ModelOptions",
    "ProfileOptions",
]

Positive = Annotated[int, pydantic.Field(gt=0)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]


class Options(pydantic.BaseModel):
    """Frozen; unknown keys are refused; types are not converted (an integer may stand for a float)."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelOptions(Options):
    """Where the trained model comes from.

    `factory`: "module:callable" returning a torch.nn.Module, from a module beside the configuration or on the path.
    `weights`: a state dict, safetensors or .pth.
    """

    factory: str
    weights: str


class DataOptions(Options):
    """Training and test images: an .npz file, a folder of images, or "module:callable" (see core.samples.read_samples)."""

    train: str
    test: str
    mean: tuple[float, ...] | None = pydantic.Field(default=None, strict=False)
    std: tuple[float, ...] | None = pydantic.Field(default=None, strict=False)
    image_size: Positive | None = None
    train_limit: Positive | None = None
    test_limit: Positive | None = None


class MaskOptions(Options):
    """How masks are chosen.

    `include` and `exclude` are globs over layer names; `exclude` wins. `batch_norm`: after `magnitude`, re-estimate batch-norm
    statistics on training images. The rest steers the learned method: `epochs` (or `max_steps`, whichever ends first),
    `learning_rate` (peak of a one-cycle schedule, AdamW), `distillation` (weight in [0, 1] of the dense model's soft labels;
    1 uses no labels), `temperature` (of the distillation), `augment` (random shifts by up to an eighth of the image, and
    mirroring).
    """

    pattern: str = "2:4"
    method: Literal["magnitude", "scores"] = "scores"
    batch_norm: bool = True
    include: tuple[str, ...] = pydantic.Field(default=("*",), strict=False)
    exclude: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    epochs: Positive = 10
    max_steps: Positive | None = None
    batch_size: Positive = 128
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 0.02
    distillation: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, pydantic.Field(gt=0)] = 2.0
    augment: Literal["none", "shift", "shift-mirror"] = "none"
    autocast: Literal["none", "bfloat16"] = "none"
    calibration_count: Positive = 2000
    seed: Seed = 0

    @pydantic.field_validator("pattern", mode="before")
    @classmethod
    def _not_sexagesimal(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 2:4 as the base-60 number 124.
        if isinstance(value, int):
            raise ValueError('write the pattern in quotes, as "2:4": without them YAML reads it as a base-60 number')
        return value


class BakeOptions(Options):
    """The ONNX file: `precision` of the weights, and the operator set."""

    precision: Literal["fp32"] = "fp32"
    opset: Literal[18, 19, 20, 21, 22, 23] = 20


class EngineOptions(Options):
    """What changes the engine: the backend, the batch it is timed and run at, and CPU threads (0: all cores)."""

    backend: Literal["auto", "onnxruntime", "tensorrt"] = "onnxruntime"
    batch: Positive = 64
    threads: Annotated[int, pydantic.Field(ge=0)] = 0
    workspace_mib: Positive = 1024


class ProfileOptions(Options):
    """How long and how often to time; `confidence` is the coverage of the interval of the speedup."""

    rounds: Annotated[int, pydantic.Field(ge=10)] = 100
    inferences_per_round: Positive = 3
    warmup: Annotated[int, pydantic.Field(ge=1)] = 10
    confidence: Annotated[float, pydantic.Field(gt=0.5, lt=1)] = 0.95
    seed: Seed = 0


class CertifyOptions(Options):
    """`sample_count` test images for the per-sample bounds; `grid` is N of the N x N frequency grid of bound (a)."""

    sample_count: Positive = 100
    grid: Annotated[int, pydantic.Field(ge=4)] = 32


class Gates(Options):
    """What the user demands before deployment.

    `accuracy_drop_points`: largest drop measured on the test set, in percentage points. `flip_rate`: largest share of
    samples whose top-1 differs between dense and sparse. `layerwise_violations`: layers allowed to leave their bound. With
    `require_interval` the upper ends of the confidence intervals must meet the gates too, else the verdict is inconclusive.
    """

    accuracy_drop_points: Annotated[float, pydantic.Field(ge=0)] = 1.0
    flip_rate: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    layerwise_violations: Annotated[int, pydantic.Field(ge=0)] = 0
    require_interval: bool = False
    confidence: Annotated[float, pydantic.Field(gt=0.5, lt=1)] = 0.95


class DeployConfig(Options):
    """A whole configuration file; relative paths start at the folder of the file, `out` at the working folder."""

    model: ModelOptions
    data: DataOptions
    mask: MaskOptions = MaskOptions()
    bake: BakeOptions = BakeOptions()
    engine: EngineOptions = EngineOptions()
    profile: ProfileOptions = ProfileOptions()
    certify: CertifyOptions = CertifyOptions()
    gates: Gates = Gates()
    out: str
