"""One mutated file: made from a seed and a number, laid out in a folder, kept where it found something."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import onnx

from masksparse_deploy.core.files import canonical_json, write_atomic
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.hostile_files import HOSTILE_MUTATIONS, MODEL_NAME, Layout
from tests.fuzz.seeds import SEEDS, seed_named
from tests.fuzz.structure_mutations import STRUCTURE_MUTATIONS

__all__ = ["MUTATIONS", "Case", "make_case", "read_case"]

CASE_NAME = "case.json"
MODEL_FOLDER = "model"
_PRECISIONS = ("fp32",) * 6 + ("fp16", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A mutated file, and what is tried with it.

    Attributes:
        number: with the run's seed it determines everything else.
        seed_name: the valid file it comes from, whose masks are baked.
        mutation: what was done to it, a key of `MUTATIONS`.
        precision: of the baked file.
    """

    number: int
    seed_name: str
    mutation: str
    precision: str
    layout: Layout

    def keep(self, folder: Path, finding: str) -> None:
        """Write the case so that `read_case` finds it, with what it found in words; an earlier one of that number goes."""
        shutil.rmtree(folder, ignore_errors=True)
        self.layout.write(folder / MODEL_FOLDER)
        names = ("number", "seed_name", "mutation", "precision")
        content = {name: getattr(self, name) for name in names}
        write_atomic(folder / CASE_NAME, canonical_json({**content, "must_refuse": self.layout.must_refuse}))
        write_atomic(folder / "finding.txt", finding.encode(errors="backslashreplace"))


def read_case(folder: Path) -> Case:
    """A case that was kept."""
    content: dict[str, Any] = json.loads((folder / CASE_NAME).read_bytes())
    layout = Layout.read(folder / MODEL_FOLDER, must_refuse=content.pop("must_refuse"))
    return Case(layout=layout, **content)


def make_case(seed: int, number: int) -> Case:
    """The same for the same arguments."""
    random = Random(f"{seed}/{number}")
    # storage forms have many seeds of little difference
    names = list(SEEDS)
    seed_name = random.choices(names, weights=[1 if name.endswith((" raw", " typed")) else 4 for name in names])[0]
    mutation = random.choice(list(MUTATIONS))
    origin = seed_named(seed_name)
    layout = Layout(files={MODEL_NAME: origin.model, **origin.beside})
    return Case(
        number=number,
        seed_name=seed_name,
        mutation=mutation,
        precision=random.choice(_PRECISIONS),
        layout=MUTATIONS[mutation](random, layout),
    )


def _bytes(change: Callable[[Random, bytes, bytes], bytes], random: Random, layout: Layout) -> Layout:
    name = MODEL_NAME if random.random() < 0.9 else random.choice(list(layout.files))
    other = seed_named(random.choice(list(SEEDS))).model
    return Layout(files={**layout.files, name: change(random, layout.files[name], other)})


def _structure(change: Callable[[Random, onnx.ModelProto], None], random: Random, layout: Layout) -> Layout:
    model = onnx.load_model_from_string(layout.model)
    change(random, model)
    return layout.with_model(model.SerializeToString())


MUTATIONS: dict[str, Callable[[Random, Layout], Layout]] = {
    **{name: partial(_bytes, change) for name, change in BYTE_MUTATIONS.items()},
    **{name: partial(_structure, change) for name, change in STRUCTURE_MUTATIONS.items()},
    **HOSTILE_MUTATIONS,
}
