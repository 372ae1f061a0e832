from masksparse_deploy.cli.render import certify_lines, engine_lines, finding_lines, learn_lines, validate_lines
from masksparse_deploy.cli.render_profile import profile_lines
from masksparse_deploy.cli.render_survival import survival_table
from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.artifacts.learning import Stage
from masksparse_deploy.core.artifacts.survival import StageState
from tests.report.artifacts import make_learn
from tests.report.engine_artifacts import make_profile
from tests.report.validation_artifacts import make_attribution, make_certificate, make_survival, make_validation

DENSE = Stage(name="dense", correct=900, total=1000, kept=True, passed=True)
MAGNITUDE = Stage(name="magnitude", correct=700, total=1000, kept=True, passed=False)
PERMUTATION = Stage(name="permutation", correct=690, total=1000, kept=False, passed=False)
BATCH_NORM = Stage(name="batch norm", correct=895, total=1000, kept=True, passed=True)


def lines(*recipe: Stage, **changes: object) -> list[str]:
    return learn_lines(make_learn().model_copy(update={"recipe": recipe, **changes}))


def test_each_stage_says_what_it_brought_to_what_was_kept() -> None:
    text = lines(DENSE, MAGNITUDE, PERMUTATION, BATCH_NORM)
    start = text.index("recipe, on the test images: magnitude: 70.0 %")
    assert text[start + 1 : start + 3] == [
        "permutation: 69.0 %, -1.00 points, dropped again",
        "batch norm: 89.5 %, +19.50 points, passes the gate",
    ]
    assert not any("no stage passes" in line for line in text)


def test_a_note_on_a_stage_is_shown() -> None:
    again = BATCH_NORM.model_copy(update={"note": "in the new order of channels, after all"})
    line = "batch norm: 89.5 %, +19.50 points, passes the gate (in the new order of channels, after all)"
    assert line in lines(DENSE, MAGNITUDE, PERMUTATION, again)


def test_a_stage_that_was_left_out_says_why() -> None:
    left_out = Stage(name="permutation", correct=None, total=1000, kept=False, passed=False, note="torch.export failed for add")
    text = lines(DENSE, MAGNITUDE, left_out, decided_on="validation")
    assert "recipe, on the validation images: magnitude: 70.0 %" in text
    assert "permutation: left out (torch.export failed for add)" in text
    assert any(line.startswith("no stage passes the accuracy gate; the best is kept") for line in text)


def test_without_a_recipe_there_is_nothing_about_it() -> None:
    assert not any("recipe" in line or "reordered" in line for line in lines())
    assert "channels reordered in 7 tensors; the dense network computes the same" in lines(permutation_count=7)


def test_the_parts_of_a_deviation() -> None:
    text = validate_lines(make_validation())
    assert (
        "outputs 25.3 % from the dense ones: mask 25 %, new values 3.1 % (25.3 % together), quantization 1.2 %, "
        "rounding 3.1e-05 % (l2 of 64 samples; steps, in this order)" in text
    )
    assert "largest part of the deviation of 9 changed layers, on their own inputs: mask in 9" in text
    hidden = make_attribution().model_copy(update={"output": None, "output_obstacle": "the reference does not cover [mod]"})
    text = validate_lines(make_validation().model_copy(update={"attribution": hidden}))
    assert r"what the deviation at the output is made of: not known, the reference does not cover \[mod]" in text


def test_the_four_checkpoints_of_every_layer() -> None:
    line = "sparsity seen of 9 masked layers: module 9, onnx 9, converted 9, engine 9"
    assert line in validate_lines(make_validation())
    layers = make_survival(lost=make_validation().layers[4].layer)
    hidden = StageState(state="not checked", why="no bake report was given for it")
    table, reason = survival_table(tuple(layer.model_copy(update={"module": hidden}) for layer in layers))
    assert not isinstance(table, str)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["module"] == ["[yellow]not checked[/]"] * 9
    assert (
        columns["engine"]
        == ["[green]conforming[/]"] * 4 + ["[red]broken (3 of 2,304 groups)[/]"] + ["[green]conforming[/]"] * 4
    )
    assert columns["lost at"] == ["-"] * 4 + ["[red]engine[/]"] + ["-"] * 4
    assert reason == "[yellow]module[/] no bake report was given for it"


def test_without_masked_layers_there_is_no_table() -> None:
    assert list(survival_table(())) == []
    assert not any("sparsity seen" in line for line in validate_lines(make_validation().model_copy(update={"survival": ()})))


def test_what_happened_to_the_weights_is_said_as_it_is() -> None:
    assert "weights bit-identical; batch-norm statistics follow the masks" in lines()
    other = "0" * 64
    assert "[bold red]the weights changed[/]: this must not happen; do not deploy" in lines(weights_sha256_after=other)
    moved = tuple(
        layer.model_copy(update={"weight_change": change, "pattern": "T2:4"})
        for layer, change in zip(make_learn().layers, (0.03, 0.5, *[0.1] * 20), strict=False)
    )
    text = lines(
        weights_sha256_after=other, changed_parameters=("a.weight", "b.weight"), layers=moved, pattern="T2:4", method="adaprune"
    )
    assert "new weights in 2 parameters, kept ones moved by 3.0 % to 50.0 %; batch-norm statistics follow the masks" in text
    assert text[0].startswith("T2:4 along input and output channels: ")
    assert not any("must not happen" in line for line in text)


def test_a_fresh_image_is_spoken_of_with_sample_sizes() -> None:
    (line,) = [line for line in validate_lines(make_validation()) if "fresh image" in line]
    assert line == (
        "a fresh image: outputs at most 1.31 apart with probability 95.0 % (statistics, 299 samples); 271 of 298 others have a "
        "margin above 1.85, 270 of them keep their class"
    )


def test_too_few_samples_for_a_fresh_image_are_counted() -> None:
    report = make_validation()
    assert report.deviation is not None
    few = report.deviation.model_copy(update={"quantile": None, "sample_count": 9})
    lines = validate_lines(report.model_copy(update={"deviation": few}))
    assert "a fresh image: nothing is said, 9 samples are too few (needed: 19)" in lines


def test_the_smallest_of_the_end_to_end_claims_is_marked() -> None:
    marked = [line for line in certify_lines(make_certificate()) if "(the smallest)" in line]
    assert [line.split(":")[0] for line in marked] == ["end-to-end, hybrid"]


def test_an_engine_that_is_slower_than_dense_says_so() -> None:
    words = "[yellow]slower than the dense engine on this device[/]"
    assert words in profile_lines(make_profile(0.83))
    assert words not in profile_lines(make_profile(1.2)) and words not in profile_lines(make_profile(0.995))
    # figures that must not be used say nothing either way
    assert words not in profile_lines(make_profile(0.83, invalid_because=("load",)))


def test_what_a_build_found_is_noted() -> None:
    artifact = EngineArtifact(
        backend="tensorrt",
        plan="p",
        plan_sha256="1",
        source_sha256="2",
        precision="fp16",
        options={},
        versions={},
        device=DeviceFacts(kind="cuda", name="NVIDIA H100", details={}),
        layers=(),
        exposed=(),
        sparse_kernels="sparse tactics in 1 of 2 layers",
        findings=("fc in fp32 [dim]",),
    )
    text = engine_lines(artifact, "TensorRT 10.16.1")
    assert text[0] == "TensorRT 10.16.1   (NVIDIA H100)"
    assert text[2:] == [r"[yellow]note:[/] fc in fp32 \[dim]"]
    assert finding_lines(artifact, "dense engine: ") == [r"[yellow]note:[/] dense engine: fc in fp32 \[dim]"]
