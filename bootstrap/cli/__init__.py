"""The command `aw`. `main` runs it and turns every outcome into a documented exit code.

Hides: loading a command only when it is named, so that `aw --help` imports no network library. Guarantees: an error is
told in the one form; tracebacks only with --debug. Documented in docs/operations.md, section "Commands".
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from bootstrap.cli.failures import Exit, explain, print_failures

# Loading the libraries makes half a million objects that stay: to look for garbage among them every 700 of them takes
# an eighth of the time that a command needs to start.
GC_ALLOCATIONS: Final = 50_000

# name -> (module, attribute, what it does); the only list of commands.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "key": ("bootstrap.cli.key", "key", "Identity files: make one, show its peer id."),
    "world": ("bootstrap.cli.world", "world", "Genesis files: make a world, show one, replace its keys."),
    "node": ("bootstrap.cli.node", "node", "Run a node with its roles until SIGTERM."),
    "submit": ("bootstrap.cli.submit", "submit", "Sign and submit actions; follow them to a verified block."),
    "head": ("bootstrap.cli.query", "head", "The newest head of a world, who says so, and its age."),
    "status": ("bootstrap.cli.status", "status", "A node's own account of itself."),
    "verify": ("bootstrap.cli.query", "verify", "Verify a world from its id alone, by replaying it here."),
    "evidence": ("bootstrap.cli.evidence", "evidence", "What was proved against whom: list, show, verify."),
    "blob": ("bootstrap.cli.blob", "blob", "Content by its id: put, get, stat."),
    "demo": ("bootstrap.cli.demo", "demo", "A whole network on this machine, real flights, a verdict."),
    "completion": ("bootstrap.cli.completion", "completion", "Shell completion for bash, zsh or fish."),
}


class _Commands(click.Group):
    """Commands of the table, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry[0]), entry[1])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from bootstrap.config import nearest

            ctx.fail(f"no command {args[0]!r}{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_module, _attribute, about) in COMMANDS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"aw {version('agent-world-runtime')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Version."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks (or AW_DEBUG=1).")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Agent World Runtime: peers that run shared, deterministic worlds.

    stdout carries data, stderr everything else. Exit codes: 0 yes, 1 no, 2 wrong use, 3 not reached,
    4 own data damaged, 70 a bug of ours.
    """
    if ctx.invoked_subcommand != "node":  # which tells it together with the rest of its configuration
        from bootstrap.config import check_variables

        check_variables(os.environ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `aw` with these arguments (default: the process's own); returns the exit code."""
    gc.set_threshold(GC_ALLOCATIONS)
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or os.environ.get("AW_DEBUG", "") not in ("", "0")
    # `--debug` is taken anywhere on the line, since it is added after something has failed.
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of stdout has gone; a second failure at interpreter exit would hide that this is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.NO
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.WRONG_USE
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001  # every outcome has its exit code
        if _is_interrupt(error):
            _die_of_interrupt()
        if debug:
            sys.excepthook(type(error), error, error.__traceback__)
        return print_failures(explain(error, _asking_option(arguments)))


def _run(arguments: Sequence[str]) -> int:
    outcome: Any = program.main(list(arguments), prog_name="aw", standalone_mode=False)
    sys.stdout.flush()
    return outcome if isinstance(outcome, int) else Exit.YES


def _asking_option(arguments: Sequence[str]) -> str:
    """How the command of this line is told whom to ask: a hint must name an option that it has."""
    named = next((word for word in arguments if word in COMMANDS), None)
    command = (
        None if named is None else getattr(importlib.import_module(COMMANDS[named][0]), COMMANDS[named][1])
    )
    options = {name for param in getattr(command, "params", ()) for name in param.opts}
    return "--bootstrap" if "--bootstrap" in options else "--node"


def _is_interrupt(error: BaseException) -> bool:
    """True for Ctrl-C, also when trio has wrapped it together with what it interrupted."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt | click.Abort)


def _die_of_interrupt() -> None:
    """End as the shell expects of an interrupted program: by the signal itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
