"""All that is wrong with a command line, told at once.

Hides: that click stops at the first mistake. Guarantees: every value of the line is read, and each that is bad has its
own error line; a value that only the command itself can judge is told together with the others of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import click
from click.core import iter_params_for_processing

from bootstrap.cli.failures import Exit, Failure
from bootstrap.config import ConfigMistakes
from bootstrap.data_dir import GenesisFileBad

T = TypeVar("T")


class Command(click.Command):
    """A command whose value mistakes are all told, as an ExceptionGroup of them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except (click.UsageError, ExceptionGroup) as first:
            raise ExceptionGroup("wrong use", _mistakes(self, ctx, given, first)) from first


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def _mistakes(
    command: click.Command, ctx: click.Context, args: list[str], first: Exception
) -> list[Exception]:
    """Read every parameter once more, each by itself; `first` where only the line as a whole is wrong."""
    probe = click.Context(command, parent=ctx.parent, info_name=ctx.info_name)
    try:
        values, rest, order = command.make_parser(probe).parse_args(list(args))
    except click.UsageError:  # an unknown option: what stands beside it cannot be told from values
        return [first]
    found: list[Exception] = []
    for param in iter_params_for_processing(order, command.get_params(probe)):
        try:
            param.handle_parse_result(probe, values, rest)
        except (click.UsageError, ExceptionGroup) as mistake:
            found.append(mistake)
    return found or [first]


class Mistakes:
    """What is wrong with the use of a command, gathered by the command itself."""

    def __init__(self) -> None:
        self._found: list[Exception] = []

    def tried(self, make: Callable[[], T]) -> T | None:
        """What `make` gives; None when it raised that something is used wrongly, or that nobody can be reached."""
        try:
            return make()
        except (click.UsageError, Failure, ConfigMistakes, GenesisFileBad) as mistake:
            self._found.append(mistake)
            return None

    def check(self) -> None:
        """Raise what was found: wrong use first, since who is to be asked matters only then."""
        wrong = [
            error for error in self._found if not isinstance(error, Failure) or error.code == Exit.WRONG_USE
        ]
        if wrong or self._found:
            raise ExceptionGroup("wrong use", wrong or self._found)


def each(
    read: Callable[[str], T],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[T, ...]]:
    """A callback for a repeatable option: `read` each value, and tell all that it raises ValueError for."""

    def read_all(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> tuple[T, ...]:
        values, bad = list[T](), list[Exception]()
        for text in texts:
            try:
                values.append(read(text))
            except ValueError as error:
                bad.append(click.BadParameter(f"{text!r} {error}", ctx=ctx, param=param))
        if bad:
            raise ExceptionGroup("wrong use", bad)
        return tuple(values)

    return read_all
