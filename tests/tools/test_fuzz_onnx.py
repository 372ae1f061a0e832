import collections
import json
from pathlib import Path

import onnx
import pytest

from masksparse_deploy.bake.lint import lint
from tests.fuzz import planted
from tests.fuzz.cases import MUTATIONS, make_case, read_case
from tests.fuzz.hostile_files import MODEL_NAME, Layout
from tests.fuzz.seeds import SEEDS, seed_named
from tests.fuzz.stages import Stage
from tests.fuzz.worker import Limits
from tools import fuzz_onnx

QUICK = Limits(seconds=0.3, wall_factor=5)


def number_of(mutation: str, *, after: int = -1) -> int:
    """The next case with that mutation."""
    return next(number for number in range(after + 1, 10_000) if make_case(0, number).mutation == mutation)


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_valid_files_that_the_linter_reads_or_says_why_not(name: str, tmp_path: Path) -> None:
    seed = seed_named(name)
    folder = tmp_path / "model"
    Layout(files={MODEL_NAME: seed.model, **seed.beside}).write(folder)
    onnx.checker.check_model(folder / MODEL_NAME)
    if name == "sparse":
        pytest.skip("sparse tensors are refused")
    assert lint(folder / MODEL_NAME).layers


def test_cases_depend_on_seed_and_number_alone() -> None:
    cases = [make_case(3, number) for number in range(100)]
    assert [make_case(3, number) for number in range(100)] == cases
    assert [make_case(4, number) for number in range(100)] != cases


def test_every_mutation_and_every_seed_comes_up() -> None:
    cases = [make_case(0, number) for number in range(600)]
    assert {case.mutation for case in cases} == set(MUTATIONS)
    assert {case.seed_name for case in cases} == set(SEEDS)


def test_most_mutations_change_the_file() -> None:
    changed = collections.Counter()
    for number in range(200):
        case = make_case(0, number)
        seed = seed_named(case.seed_name)
        changed[case.layout.files != {MODEL_NAME: seed.model, **seed.beside}] += 1
    # a field may be set to what it was, and deleting from an empty list deletes nothing
    assert changed[False] < 20


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (planted.raises_key_error, "lint: KeyError"),
        (planted.refuses_without_a_word, "empty or too long"),
        (planted.sleeps, "waits for something"),
        (planted.loops, "takes more than 0.3 s of CPU time"),
        (planted.dies, "left with exit code 3"),
        (planted.segfaults, "died by SIGSEGV"),
        (planted.takes_all_memory, "MemoryError"),
        (planted.leaves_half_an_output, "leaves sparse.onnx behind"),
        (planted.writes_beside_the_model, "changes the folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_found_and_the_next_file_is_tried(stage: Stage, said: str, tmp_path: Path) -> None:
    first = number_of("truncated")
    numbers = [first, number_of("truncated", after=first)]
    summary = fuzz_onnx.fuzz(numbers, seed=0, limits=QUICK, kept=tmp_path, stages={"lint": stage})
    ((signature, found),) = summary.findings.items()
    assert said in signature
    assert found == numbers
    assert signature in (tmp_path / f"0-{first}" / "finding.txt").read_text()
    assert json.loads((tmp_path / f"0-{first}" / "case.json").read_bytes())["number"] == first


def test_what_must_be_refused_may_not_be_accepted() -> None:
    number = number_of("external: elsewhere")
    summary = fuzz_onnx.fuzz([number], seed=0, limits=QUICK, stages={"lint": planted.accepts_anything})
    assert list(summary.findings) == ["lint takes what it must refuse (external: elsewhere)"]


def test_a_bake_that_ends_well_must_have_written_its_files() -> None:
    number = number_of("versions")
    summary = fuzz_onnx.fuzz([number], seed=0, limits=QUICK, stages={"bake": planted.accepts_anything})
    assert list(summary.findings) == ["ends well with only "]


def test_a_traceback_shows_where_a_file_hangs(tmp_path: Path) -> None:
    fuzz_onnx.fuzz([1], seed=0, limits=QUICK, kept=tmp_path, stages={"lint": planted.loops})
    (text,) = [path.read_text() for path in tmp_path.glob("*/finding.txt")]
    assert "planted.py" in text and "in loops" in text


@pytest.mark.parametrize("mutation", ["truncated", "external: elsewhere", "no regular file"])
def test_a_kept_case_is_tried_again_as_it_was(mutation: str, tmp_path: Path) -> None:
    case = make_case(0, number_of(mutation))
    case.keep(tmp_path / "kept", "what it found")
    assert read_case(tmp_path / "kept") == case
    assert {result.verdict for result in fuzz_onnx.replay(tmp_path / "kept", limits=Limits())} == {"refused"}


def test_a_few_hundred_files_find_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code = fuzz_onnx.main(["--count", "300", "--seed", "1"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "findings" in printed
