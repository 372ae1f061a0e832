"""The comparison runs the real tools; the rule of trtexec is the documented one."""

from pathlib import Path

import numpy as np
import pytest

from tools import compare_validators
from tools.compare_validators import ENGINES, POLYGRAPHY, compare, trtexec_losses


def test_there_are_ten_engines_good_and_bad() -> None:
    assert len({engine.name for engine in ENGINES}) == 10
    assert sum(engine.is_good for engine in ENGINES) == 4
    assert all(engine.is_good or engine.change is not None or engine.chain == "costly" for engine in ENGINES)


def test_the_rule_of_trtexec() -> None:
    reference = np.array([[1.0, 2.0, 0.0, 4.0]], dtype=np.float32)
    assert trtexec_losses(reference, reference) == {"l0": 0.0, "cos": pytest.approx(0.0, abs=1e-15)}
    # 1e-5 + 1e-5 |reference| at 0 is 1e-5, at 4 it is 5e-5: one element outside, the other within
    off = trtexec_losses(reference + np.array([[0, 0, 2e-5, 4e-5]], dtype=np.float32), reference)
    assert off["l0"] == 0.25
    # the angle is what counts, not the size
    assert trtexec_losses(2 * reference, reference)["cos"] == pytest.approx(0.0, abs=1e-12)
    assert trtexec_losses(-reference, reference)["cos"] == pytest.approx(2.0)
    assert trtexec_losses(reference * np.float32("nan"), reference)["l0"] == 1.0


def test_each_fault_changes_the_constants_that_it_names() -> None:
    generator = np.random.default_rng(0)
    names = ["stem.weight", "blocks.2.conv2.weight", "classifier.weight", "classifier.bias"]
    names += [f"blocks.3.conv{number}.weight{suffix}" for number in (1, 2) for suffix in ("", "_bias")]
    constants = {name: generator.standard_normal((4, 4)).astype(np.float32) for name in names}

    def changed(fault: str) -> set[str]:
        new = getattr(compare_validators, fault)({name: array.copy() for name, array in constants.items()})
        return {name for name, array in new.items() if not np.array_equal(array, constants[name])}

    assert changed("_wrong_weight") == {"blocks.2.conv2.weight"}
    assert changed("_normalised_twice") == {"stem.weight"}
    assert changed("_permuted_classes") == {"classifier.weight", "classifier.bias"}
    assert changed("_swapped_layers") == set(names[-4:])


def test_wrong_answers_are_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    columns = [*(f"Polygraphy {name}" for name in POLYGRAPHY), "trtexec's rule l0", "trtexec's rule cos"]
    said = {**dict.fromkeys(columns, "pass"), "masksparse": "fail: accuracy drop"}
    monkeypatch.setattr(compare_validators, "compare", lambda *arguments: said)
    compare_validators.main(["--out", str(tmp_path), "--only", "INT8", "classes permuted"])
    _, _, good, bad = capsys.readouterr().out.splitlines()
    assert good == "| INT8 | pass |" + " pass |" * 6 + " **fail: accuracy drop** |"
    assert bad == "| classes permuted | fail |" + " **pass** |" * 6 + " fail: accuracy drop |"


# Polygraphy looks for its extensions in a way that Python 3.11 warns of.
@pytest.mark.filterwarnings("ignore:SelectableGroups dict interface:DeprecationWarning")
@pytest.mark.slow
def test_the_validators_are_asked_about_a_good_and_a_bad_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("polygraphy")
    # one run of Polygraphy for each engine is enough to see that it is asked
    monkeypatch.setattr(compare_validators, "POLYGRAPHY", {"file, 1e-5": POLYGRAPHY["file, 1e-5"]})
    engines = {engine.name: engine for engine in ENGINES}
    good = compare(engines["FP32"], tmp_path, 32)
    assert good == {
        "Polygraphy file, 1e-5": "pass",
        "trtexec's rule l0": "pass",
        "trtexec's rule cos": "pass",
        "masksparse": "pass",
    }
    bad = compare(engines["classes permuted"], tmp_path, 32)
    assert {said.partition(":")[0] for said in bad.values()} == {"fail"}
    assert bad["masksparse"].startswith("fail: weights of the sparse plan and ")
