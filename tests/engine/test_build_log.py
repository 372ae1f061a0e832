"""What the builder's log tells, from lines that people published; tests/golden/README.md says whose."""

from pathlib import Path

import pytest

from masksparse_deploy.engine.build_log import is_told, parse_log

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LOGS = sorted(GOLDEN.glob("build-log-*.log"))


def golden(name: str) -> str:
    return (GOLDEN / f"build-log-{name}.log").read_text(encoding="utf-8")


def test_nothing_is_picked_of_one_eligible_layer() -> None:
    log = parse_log(golden("8.0-issue-1403"))
    assert (log.eligible, log.chosen, log.eligible_count, log.chosen_count) == (("Conv_0",), (), 1, 0)
    assert log.names_chosen


def test_names_of_many_layers() -> None:
    log = parse_log(golden("8-issue-2169"))
    assert (len(log.eligible), log.eligible[0], log.eligible[-1]) == (50, "Conv_22", "Gemm_725")
    assert (log.eligible_count, log.chosen_count) == (50, 0)


def test_some_layers_are_picked() -> None:
    log = parse_log(golden("8-developer-guide"))
    assert (log.eligible, log.chosen) == (("conv1", "conv2", "conv3"), ("conv2", "conv3"))


def test_counts_without_names() -> None:
    log = parse_log(golden("10-counts"))
    assert (log.eligible, log.eligible_count, log.chosen_count) == ((), 39, 0)
    assert log.names_chosen  # none was, so it is known of each
    assert not parse_log("(Sparsity) Chose 3 layer(s) using sparse tactics").names_chosen


def test_counts_with_names() -> None:
    log = parse_log("(Sparsity) Chose 2 layer(s) using sparse tactics: a + b, c")
    assert (log.chosen, log.chosen_count) == (("a + b", "c"), 2)


def test_passes_repeat_names_not_layers() -> None:
    log = parse_log(golden("8-developer-guide") * 3)
    assert (log.eligible_count, log.chosen_count) == (3, 2)


def test_times_in_two_lines() -> None:
    first, second = parse_log(golden("8-two-lines")).timings
    assert first.layer.endswith("QuantizeLinear + /model/backbone0/conv/Conv")
    assert first.formats == "Int8(614400,614400:32,960,1) -> Int8(153600,153600:32,480,1)"
    assert first.tactic.startswith("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32")
    assert (first.tactic_value, first.time_ms) == ("0x028e842ce51fbd9d", 0.323858)
    assert (second.tactic_value, second.time_ms) == ("0x9262f8f95beb428d", 0.181481)


def test_times_in_one_line() -> None:
    log = parse_log(golden("10-timings"))
    assert {timing.layer for timing in log.timings} == {"/features/features.0/Conv + /features/features.1/Relu"}
    assert [timing.time_ms for timing in log.timings] == [0.0521752, 0.0513463, 0.0375589]
    assert log.timings[2].formats == "Half(50176,1:4,224,1) -> Half(24200,1:8,440,8)"
    assert not log.times_sparse


def test_a_time_that_was_kept_has_no_tactic_name() -> None:
    (kept,) = parse_log(golden("10.0.1-issue-4028")).timings
    assert kept.layer.startswith("backbone2d.blocks.2.15.weight + ")
    assert (kept.tactic, kept.tactic_value, kept.time_ms) == ("", "0x1d53511430a5d47e", 0.00649725)


def test_a_name_that_the_log_told_before_is_given_to_a_kept_time() -> None:
    lines = (
        "Timing Runner: a (CaskConvolution[0x80000009])",
        "Tactic Name: sm80_xmma_sparse Tactic: 0x01 Time: 0.5",
        "b [Half(1) -> Half(1)] got cached result: CaskConvolution, tactic 0x01, 0.5 ms",
    )
    log = parse_log("\n".join(lines))
    assert [timing.tactic for timing in log.timings_of("b")] == ["sm80_xmma_sparse"]
    assert log.times_sparse


@pytest.mark.parametrize("time", ["inf", "nan", "skipped"])
def test_times_that_are_none_are_left_out(time: str) -> None:
    assert parse_log(f"Timing Runner: a (Cask)\nTactic Name: t Tactic: 0x1 Time: {time}").timings == ()


def test_a_time_without_a_layer_is_left_out() -> None:
    assert parse_log("Tactic Name: t Tactic: 0x1 Time: 1.0").timings == ()


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_told_lines_hold_all_that_is_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    told = [line for line in text.splitlines() if is_told(line)]
    assert told
    assert parse_log("\n".join(told)) == parse_log(text)
    bare = [line.rpartition("[TRT] ")[2] for line in told]  # as a logger gets it, without date and severity
    assert all(map(is_told, bare))
    assert parse_log("\n".join(bare)) == parse_log(text)


def test_other_lines_are_not_kept() -> None:
    assert not is_told("[V] [TRT] CaskConvolution has no valid tactics for this config, skipping")
    assert not is_told("[I] [TRT] Total Activation Memory: 7864832")
    assert not is_told("Fastest Tactic: 0x9262f8f95beb428d Time: 0.181481")
    assert parse_log("anything\nelse").eligible_count is None
