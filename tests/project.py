"""A user's folder in small: a model, its checkpoint, data and a deploy.yaml, for tests of the whole chain."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from masksparse_deploy.cli.main import run
from tests.models.tiny_cnn import example_images, tiny_cnn
from tests.requirements import REPOSITORY

FACTORY = "tests.models.tiny_cnn:tiny_cnn"


def make_project(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write the project into `folder` and return the path of its deploy.yaml; `sections` are merged into it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_cnn(seed=1)  # seed 0 gives the same class to every image, so that agreement with it would show nothing
    save_file(model.state_dict(), folder / "model.safetensors")
    for name, count, seed in (("train", 256, 1), ("test", 128, 2)):
        images = example_images(count, seed=seed)
        with torch.no_grad():
            labels = model(torch.from_numpy(images)).argmax(1).numpy()
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    content: dict[str, Any] = {
        "model": {"factory": FACTORY, "weights": "model.safetensors"},
        "data": {"train": "train.npz", "test": "test.npz"},
        "mask": {"method": "scores", "epochs": 2, "batch_size": 32, "distillation": 1.0, "calibration_count": 128},
        "engine": {"batch": 16, "threads": 1},
        "profile": {"rounds": 20, "inferences_per_round": 1, "warmup": 1},
        "certify": {"sample_count": 16, "grid": 8},
        "gates": {"accuracy_drop_points": 100, "flip_rate": 1.0},
        "out": str(folder / "out"),
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    path = folder / "deploy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "masksparse_deploy", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def masksparse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, in this process, as starting one takes seconds."""
    line = [str(argument) for argument in arguments]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as error, patch.dict(os.environ, COLUMNS="200"):
        code = run(line)
    return subprocess.CompletedProcess(line, code, out.getvalue(), error.getvalue())


def masksparse_process(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, in a process of its own, as users do."""
    process = start([str(argument) for argument in arguments])
    out, error = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)
