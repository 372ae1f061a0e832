"""What `polygraphy run`, the documented rule of trtexec and `masksparse validate` say about the same ten engines.

    python tools/compare_validators.py --out out/comparison

The engines are ONNX Runtime's for the digits sample: good ones, and bad ones with a planted fault each. Polygraphy and
masksparse are run; trtexec needs a GPU and TensorRT, so that its rule is only computed here, from the outputs that Polygraphy
recorded.
"""

import argparse
import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import DeployConfig, EngineOptions, Gates
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.samples import Samples, read_split
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import run_chain
from masksparse_deploy.validate.run import validate

__all__ = ["ENGINES", "POLYGRAPHY", "Engine", "compare", "main", "trtexec_losses"]

DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"
OPTIONS = EngineOptions(batch=64, threads=1)
GATES = Gates(accuracy_drop_points=1.0, flip_rate=0.02)
# Mask and bake options of the chains that the engines come from: masks by magnitude, batch-norm statistics estimated anew.
CHAINS: dict[str, dict[str, dict[str, object]]] = {
    "fp32": {"bake": {"precision": "fp32"}},
    "fp16": {"bake": {"precision": "fp16"}},
    "int8": {"bake": {"precision": "int8"}},
    "costly": {"bake": {"precision": "fp32"}, "mask": {"batch_norm": False}},
}
# Column -> which file's outputs are the reference, and the options of `polygraphy run`.
POLYGRAPHY: dict[str, tuple[str, tuple[str, ...]]] = {
    "file, 1e-5": ("sparse", ()),
    "file, 1e-2": ("sparse", ("--atol", "1e-2", "--rtol", "1e-2")),
    "file, top-1": ("sparse", ("--postprocess", "top-1", "--compare", "indices")),
    "dense, 1e-2": ("dense", ("--atol", "1e-2", "--rtol", "1e-2")),
}
# --accuracyAlgorithm -> the --accuracyThreshold that we chose for it; trtexec has no default.
TRTEXEC = {"l0": 0.01, "cos": 1e-3}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """An engine: whether it should be deployed, the chain that built it, and the fault that is planted in its plan."""

    name: str
    is_good: bool
    chain: str
    change: Callable[[Path], None] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, build the engines, ask the validators, print a table; wrong answers are bold."""
    parser = argparse.ArgumentParser(description="Validators on good and bad engines of the digits sample.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the chains and the engines")
    parser.add_argument("--only", nargs="*", default=[engine.name for engine in ENGINES], help="names of engines")
    parser.add_argument("--count", type=int, default=200, help="test images that outputs are compared on")
    given = parser.parse_args(arguments)
    columns = [*(f"Polygraphy {name}" for name in POLYGRAPHY), *(f"trtexec's rule {name}" for name in TRTEXEC), "masksparse"]
    print(f"| engine | should be | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for engine in ENGINES:
        if engine.name in given.only:
            said = compare(engine, given.out, given.count)
            wanted = _word(engine.is_good)
            answers = [said[column] if said[column].startswith(wanted) else f"**{said[column]}**" for column in columns]
            print(f"| {engine.name} | {wanted} | {' | '.join(answers)} |", flush=True)


def compare(engine: Engine, out: Path, count: int) -> dict[str, str]:
    """What each validator says about an engine, by column.

    Args:
        engine: which.
        out: folder for the chains, which are run where they have not been, and for a copy of the one that is changed.
        count: test images that outputs are compared on; masksparse measures accuracies on all of them.
    """
    job = _chain(engine.chain, out)
    # What a user takes as reference: the file in FP32, whatever the engine's precision.
    references = job.out if engine.chain == "costly" else _chain("fp32", out).out
    folder = out / "engines" / engine.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(job.out, folder)
    if engine.change is not None:
        engine.change(folder)
        _record(folder)
    samples = read_split(job.config.data, "test", job.folder)
    inputs = _save_images(out / f"inputs-{count}.json", samples.images[:count])
    recorded = {name: references / f"{name}.outputs-{count}.json" for name in ("sparse", "dense")}
    for name, path in recorded.items():
        if not path.exists():
            _polygraphy(references / f"{name}.onnx", inputs, "--save-outputs", str(path))
    # what trtexec would be given
    samples.images[:count].tofile(folder / "images.raw")
    _load_outputs(recorded["sparse"]).tofile(folder / "logits.raw")
    plan = folder / EngineArtifact.read(folder / "sparse.engine.json").plan
    said = {}
    for column, (reference, options) in POLYGRAPHY.items():
        outputs = folder / f"{column}.json"
        answer = _polygraphy(plan, inputs, "--load-outputs", str(recorded[reference]), "--save-outputs", str(outputs), *options)
        said[f"Polygraphy {column}"] = _word(answer)
    losses = trtexec_losses(_load_outputs(folder / "file, 1e-5.json"), _load_outputs(recorded["sparse"]))
    said |= {f"trtexec's rule {name}": _word(losses[name] < threshold) for name, threshold in TRTEXEC.items()}
    return {**said, "masksparse": _masksparse(folder, samples)}


def trtexec_losses(actual: Array, reference: Array) -> dict[str, float]:
    """The losses that `trtexec --accuracyAlgorithm` documents; a loss that is not below --accuracyThreshold fails the run.

    Source: samples/trtexec/README.md, section 7.5, and samples/common/sampleUtils.h of TensorRT 11. With the default tolerances
    of 1e-5 `l0` is the share of elements outside atol + rtol |reference|; `cos` is 1 - cosine similarity.
    """
    values, wanted = actual.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    outside = ~(np.abs(values - wanted) <= 1e-5 + 1e-5 * np.abs(wanted))
    return {
        "l0": float(outside.mean()),
        "cos": float(1 - values @ wanted / (np.linalg.norm(values) * np.linalg.norm(wanted))),
    }


@functools.cache
def _chain(name: str, out: Path) -> Job:
    """Run a chain up to its certificate, where that has not been done."""
    base = read_config(DIGITS / "fp16.yaml")
    values = base.model_dump(exclude_unset=True)
    sections = {section: {**values.get(section, {}), **options} for section, options in CHAINS[name].items()}
    engine = OPTIONS.model_dump(exclude_unset=True)
    config = DeployConfig.model_validate(
        {**values, **sections, "engine": engine, "profile": {"rounds": 10}, "certify": {"grid": 8}}
    )
    job = Job(config=config, folder=DIGITS, out=out / name, command="", config_text="")
    run_chain(job, until="certify")
    return job


def _masksparse(folder: Path, samples: Samples) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        report = validate(
            dense_engine=folder / "dense.engine.json",
            sparse_engine=folder / "sparse.engine.json",
            dense_onnx=folder / "dense.onnx",
            sparse_onnx=folder / "sparse.onnx",
            certificate=Certificate.read(folder / "certificate.json"),
            probe=folder / "probe.safetensors",
            baked=BakeReport.read(folder / "bake.json"),
            samples=samples,
            gates=GATES,
            engine_options=OPTIONS,
            out=Path(scratch),
        )
    blocking = [check.name for check in report.checks if check.verdict == "fail" or (check.decides and check.verdict != "pass")]
    others = f" and {len(blocking) - 1} other check{'s' if len(blocking) > 2 else ''}" if len(blocking) > 1 else ""
    return report.verdict + (f": {blocking[0]}{others}" if blocking else "")


def _polygraphy(model: Path, inputs: Path, *options: str) -> bool:
    """Do what `polygraphy run` does with ONNX Runtime; whether it passes, raises where it did not get as far as comparing."""
    from polygraphy.tools import main as polygraphy

    said = io.StringIO()
    arguments = ["run", str(model), "--model-type", "onnx", "--onnxrt", "--load-inputs", str(inputs), *options]
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):  # in this process, which saves importing it each time
        status = polygraphy(arguments)
    if status and "FAILED" not in said.getvalue():
        raise RuntimeError(f"polygraphy did not compare: {said.getvalue()[-2000:]}")
    return not status


def _save_images(path: Path, images: Array) -> Path:
    from polygraphy.json import save_json

    save_json([{"images": images}], str(path))
    return path


def _load_outputs(path: Path) -> Array:
    from polygraphy.comparator import RunResults
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        ((_, (result,)),) = RunResults.load(str(path)).items()
    outputs: Array = result["logits"]
    return outputs


def _record(folder: Path) -> None:
    """Write the digest of a changed plan into the engine's metadata, as a faulty build would."""
    metadata = folder / "sparse.engine.json"
    artifact = EngineArtifact.read(metadata)
    artifact.model_copy(update={"plan_sha256": sha256_file(folder / artifact.plan)}).write(metadata)


def _edit(folder: Path, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
    """Replace constants of the sparse plan by those that `change` makes of them."""
    plan = folder / EngineArtifact.read(folder / "sparse.engine.json").plan
    model = onnx.load(plan)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor).copy() for name, tensor in constants.items()}
    for name, array in change(arrays).items():
        constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.save(model, plan)


def _without_fusion(folder: Path) -> None:
    plan = folder / EngineArtifact.read(folder / "sparse.engine.json").plan
    shutil.copyfile(folder / "sparse.onnx", plan)


def _dense_for_sparse(folder: Path) -> None:
    dense, sparse = (EngineArtifact.read(folder / f"{name}.engine.json").plan for name in ("dense", "sparse"))
    shutil.copyfile(folder / dense, folder / sparse)


def _wrong_weight(constants: dict[str, Array]) -> dict[str, Array]:
    name = "blocks.2.conv2.weight"
    array = constants[name]
    array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.01
    return {name: array}


def _swapped_layers(constants: dict[str, Array]) -> dict[str, Array]:
    first, second = "blocks.3.conv1.weight", "blocks.3.conv2.weight"
    pairs = [(first, second), (f"{first}_bias", f"{second}_bias")]
    return {name: constants[other] for one, two in pairs for name, other in ((one, two), (two, one))}


def _normalised_twice(constants: dict[str, Array]) -> dict[str, Array]:
    return {"stem.weight": constants["stem.weight"] / np.float32(6.0)}  # the sample divides pixels by 6


def _permuted_classes(constants: dict[str, Array]) -> dict[str, Array]:
    return {name: np.roll(constants[name], 1, axis=0) for name in ("classifier.weight", "classifier.bias")}


def _word(is_good: bool) -> str:
    return "pass" if is_good else "fail"


ENGINES = (
    Engine("FP32", True, "fp32"),
    Engine("FP32 without the runtime's fusions", True, "fp32", _without_fusion),
    Engine("FP16", True, "fp16"),
    Engine("INT8", True, "int8"),
    Engine("one weight 1 % too large", False, "fp32", functools.partial(_edit, change=_wrong_weight)),
    Engine("two layers swapped", False, "fp32", functools.partial(_edit, change=_swapped_layers)),
    Engine("pixels normalised twice", False, "fp32", functools.partial(_edit, change=_normalised_twice)),
    Engine("dense instead of sparse", False, "fp32", _dense_for_sparse),
    Engine("classes permuted", False, "fp32", functools.partial(_edit, change=_permuted_classes)),
    Engine("masks that cost accuracy", False, "costly"),
)

if __name__ == "__main__":
    main()
