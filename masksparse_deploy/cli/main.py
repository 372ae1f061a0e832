"""The `masksparse` command: verbs are imported when they are used, errors become messages and exit codes."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from masksparse_deploy import __version__
from masksparse_deploy.core.errors import MasksparseError

__all__ = ["cli", "main", "run"]

EXIT_BUG = 70
EXIT_INTERRUPTED = 130

# Verb -> what it does, in the order of the chain. The command is `command` in masksparse_deploy.cli.cmd_<verb>.
VERBS = {
    "deploy": "The whole chain of a configuration file, and the verdict.",
    "forecast": "Estimate, before any training, what 2:4 weights would gain on this machine.",
    "select": "Choose which layers are worth a mask, within a budget of accuracy.",
    "learn": "Choose which weights to keep.",
    "import": "Take over a model that another tool made sparse.",
    "bake": "Write the zeros into an ONNX file that says what is sparse.",
    "lint": "What is sparse in any ONNX file, what could be, and why not.",
    "preflight": "Let NVIDIA's parser read an ONNX file, without a GPU.",
    "rewrite": "Bring 1xN layers and masked positions into the form that runs fastest here.",
    "build": "Build an engine from an ONNX file.",
    "refit": "Put new weights under the same masks into a built engine.",
    "profile": "Time the sparse engine against its dense twin.",
    "sweep": "Time both at several batch and image sizes.",
    "explain": "Which layers run sparse tactics, and why the others do not.",
    "certify": "Prove how far masking can move the outputs.",
    "validate": "Hold the engine's outputs against reference, bound and gates.",
    "gate": "Judge a finished run by the gates of a file, for CI.",
    "update": "Put new weights under the masks that are there.",
    "report": "One HTML page from the artifacts of a folder.",
    "doctor": "Which backends work on this machine, and why not.",
}

EPILOG = (
    "Exit codes: 0 done or pass; 1 the answer is no; 2 usage; 3 the machine lacks something; 4 an artifact is damaged or stale."
)


class LazyGroup(click.Group):
    """Lists its verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the chain."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"masksparse_deploy.cli.cmd_{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with a suggestion for a mistyped verb."""
        close = difflib.get_close_matches(args[0], VERBS, n=1)
        if args[0] not in VERBS and not args[0].startswith("-") and close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their one-line descriptions."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="masksparse")
def cli() -> None:
    """Structured sparsity for CNNs, from a trained PyTorch model to a checked engine."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; messages go to stderr."""
    try:
        result: Any = cli.main(args=arguments, prog_name="masksparse", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MasksparseError as error:
        click.echo(f"masksparse: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("masksparse: interrupted; run the same command again and it goes on from here", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not fail on its last flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # a bug must not look like the answer "no", which is what Python's own exit code 1 would say
        traceback.print_exc()
        click.echo("masksparse: this is a bug in masksparse; please report it with the lines above", err=True)
        return EXIT_BUG
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Entry point of the `masksparse` script."""
    sys.exit(run())
