import click
import pytest

from masksparse_deploy.cli import main as cli_main
from masksparse_deploy.cli.main import VERBS, run
from masksparse_deploy.core.errors import ArtifactError, MachineError, MasksparseError, OutputError, UsageError


def test_help_lists_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, meaning in VERBS.items():
        assert verb in text
        assert meaning.split(",")[0] in " ".join(text.split())
    assert "4 an artifact is damaged or stale" in " ".join(text.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_for_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out
    command = cli_main.cli.get_command(click.Context(cli_main.cli), verb)
    assert command is not None and command.help
    without = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert without == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deplyo"], "Did you mean 'deploy'?"),
        (["zzz"], "No such command 'zzz'"),
        (["lint"], "Missing argument 'FILE'"),
        (["lint", "--jsno", "x.onnx"], "--json"),
        (["learn", "--out", "x"], "Missing option '--factory'"),
    ],
)
def test_usage_mistakes_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("told"), 2),
        (MachineError("told"), 3),
        (OutputError("told"), 3),
        (ArtifactError("told"), 4),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("told"), 70),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli_main.cli, "main", fail)
    assert run([]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("masksparse: told") == isinstance(error, MasksparseError)
    assert ("Traceback" in told.err) == (code == 70)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pattern", "2:4", "--epochs", "0"], "--epochs: input should be greater than 0, not 0"),
        (["--learning-rate", "nan"], "--learning-rate: input should be a finite number"),
    ],
)
def test_bad_option_values_name_the_option(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = ["--factory", "m:f", "--weights", "w", "--train", "a", "--test", "b", "--out", "o"]
    assert run(["learn", *required, *arguments]) == 2
    assert words in capsys.readouterr().err
