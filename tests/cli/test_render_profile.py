from rich.text import Text

from masksparse_deploy.cli.render_profile import profile_lines
from tests.report.engine_artifacts import make_gpu_profile, make_profile


def plain(lines: list[str]) -> list[str]:
    return [Text.from_markup(line).plain for line in lines]


def test_three_engines() -> None:
    lines = plain(profile_lines(make_gpu_profile()))
    assert lines[0].endswith("speedup 1.31x [1.30, 1.32]   batch 64")
    assert lines[2:5] == [
        "CUDA events; 3 builds of each engine, intervals of 90 % confidence",
        "sparse tactics forbidden / allowed: 1.29x [1.25, 1.33] faster   1.26 to 1.32 from build to build",
        "dense / sparse tactics forbidden: 1.01x [0.97, 1.05] not told apart   0.98 to 1.04 from build to build",
    ]
    named = make_gpu_profile().model_copy(update={"device": "A GPU", "architecture": "sm_90"})
    assert plain(profile_lines(named))[2].startswith("CUDA events on A GPU, sm_90; 3 builds of each engine")
    assert lines[5].startswith("with transfers: dense 1.9")
    assert lines[6] == "slowest layers: conv + relu 1.2000 ms (80 %), copy <format> 0.3000 ms (20 %)"
    assert lines[7] == "GPU, 1 readings under load: 1755 to 1755 MHz (of 1980), 61 to 61 C, 412 to 412 W (of 700)"


def test_one_build_of_each() -> None:
    lines = plain(profile_lines(make_gpu_profile(build_count=1)))
    assert lines[2].startswith("CUDA events; one build of each engine")
    assert lines[3] == "sparse tactics forbidden / allowed: 1.29x [1.25, 1.33] faster"


def test_two_engines_on_a_cpu_take_two_lines() -> None:
    assert len(profile_lines(make_profile())) == 2
