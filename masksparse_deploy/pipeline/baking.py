"""Baking, from a PyTorch model or from an ONNX file: what joins the learn and the bake stage."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions, ModelOptions
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples

__all__ = ["bake_model", "bake_onnx"]

PROBE_COUNT = 16


def bake_model(
    model_options: ModelOptions,
    masks: Path,
    options: BakeOptions,
    samples: Samples,
    *,
    calibration: Samples | None = None,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> BakeReport:
    """Load the trained model, bring its channels into the mask set's order, and bake the mask set into it.

    The first few samples become the probe.

    Args:
        model_options: the trained model; relative paths start at `folder`.
        masks: the mask set.
        options: of the bake stage.
        samples: images as the network takes them.
        calibration: images for the ranges of reduced precisions, as the training images; INT8 needs them.
        folder: where the configuration lies.
        out: the output folder.
        progress: told how far the work is.

    Raises:
        MasksparseError: as learn.model.load_model, learn.permutation.apply and bake.run.bake do.
    """
    from masksparse_deploy.bake.run import bake
    from masksparse_deploy.learn.model import load_model, state_fingerprint
    from masksparse_deploy.learn.permutation.apply import check_unchanged, permute

    mask_set = read_mask_set(masks)
    model = load_model(model_options, folder)
    # Masks are made for the weights as they were trained, so these are what is compared.
    source_sha256 = state_fingerprint(model)
    probe = samples.images[:PROBE_COUNT]
    if mask_set.permutations:
        permuted = permute(model, mask_set.permutations)
        check_unchanged(model, permuted, probe)
        model = permuted
    return bake(
        model,
        mask_set,
        options,
        example_shape=(probe.shape[1], probe.shape[2], probe.shape[3]),
        source_sha256=source_sha256,
        out=out,
        probe_images=probe,
        calibration=_first(calibration, options),
        progress=progress,
    )


def bake_onnx(
    onnx_path: Path,
    masks: Path,
    options: BakeOptions,
    *,
    calibration: Samples | None = None,
    out: Path,
    progress: Progress = silent,
) -> BakeReport:
    """Bake a mask set into an ONNX file, without PyTorch; arguments as above.

    Raises:
        MasksparseError: as bake.from_file.bake_file does.
    """
    from masksparse_deploy.bake.from_file import bake_file

    mask_set = read_mask_set(masks)
    return bake_file(onnx_path, mask_set, options, out=out, calibration=_first(calibration, options), progress=progress)


def _first(calibration: Samples | None, options: BakeOptions) -> npt.NDArray[np.float32] | None:
    """The images that the options ask for."""
    return None if calibration is None else calibration.images[: options.calibration_count]
