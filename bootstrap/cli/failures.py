"""What went wrong, for people and scripts: one line `error: WHAT: WHY`, perhaps `try: COMMAND`, and an exit code.

Hides: which error class means which exit code. Guarantees: every exception becomes one of the documented codes; one
that nobody expected is 70, with the line to report. Documented in docs/operations.md, section "Exit codes".
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

import click

REPORT_TO: Final = "the issue tracker of agent-world-runtime"


class Exit(IntEnum):
    """Exit codes of every command."""

    YES = 0
    NO = 1
    WRONG_USE = 2
    NOT_REACHED = 3
    DAMAGED = 4
    BUG = 70


class Failure(Exception):
    """A command that cannot go on: what, why, what to try ("" for nothing), and the exit code."""

    def __init__(self, code: Exit, what: str, why: str, try_this: str = "") -> None:
        super().__init__(f"{what}: {why}")
        self.code = code
        self.what = what
        self.why = why
        self.try_this = try_this


def explain(error: BaseException, option: str = "--node") -> list[Failure]:
    """What to tell about an exception: usually one failure, for a configuration all of its mistakes.

    `option` is how the command that failed is told whom to ask.
    """
    told = [failure for leaf in _leaves(error) for failure in _explain_one(leaf, option)]
    worst = max(failure.code for failure in told)
    if worst in (Exit.WRONG_USE, Exit.BUG):
        return [failure for failure in told if failure.code == worst]
    return [next(failure for failure in told if failure.code == worst)]


def print_failures(failures: list[Failure]) -> Exit:
    """Write the error lines to stderr; returns the exit code."""
    for failure in failures:
        click.echo(f"error: {_one_line(failure.what)}: {_one_line(failure.why)}", err=True)
    hints = dict.fromkeys(failure.try_this for failure in failures if failure.try_this)
    for hint in hints:
        click.echo(f"try: {_one_line(hint)}", err=True)
    return failures[0].code


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _explain_one(error: BaseException, option: str) -> list[Failure]:
    if isinstance(error, Failure):
        return [error]
    if isinstance(error, click.ClickException):
        return [_usage(error)]
    for explained in (
        _of_the_node(error),
        _of_the_world(error, option),
        _of_the_network(error, option),
    ):
        if explained:
            return explained
    return [_bug(error)]


def _usage(error: click.ClickException) -> Failure:
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = "aw" if context is None else context.command_path
    return Failure(Exit.WRONG_USE, where, error.format_message(), f"{where} --help")


def _of_the_node(error: BaseException) -> list[Failure]:
    from bootstrap.config import ConfigMistakes
    from bootstrap.data_dir import DataDirUnusable, GenesisFileBad

    match error:
        case ConfigMistakes():
            return [Failure(Exit.WRONG_USE, mistake.what, mistake.why) for mistake in error.mistakes]
        case DataDirUnusable():
            return [Failure(Exit.WRONG_USE, f"data dir {error.path}", error.why, error.try_this)]
        case GenesisFileBad():
            return [Failure(Exit.WRONG_USE, str(error.path), error.why)]
    return []


def _of_the_world(error: BaseException, option: str) -> list[Failure]:
    from runtime import errors

    match error:
        case errors.Corrupt():
            return [Failure(Exit.DAMAGED, error.where, error.why, error.repair)]
        case errors.StoreFull():
            return [
                Failure(
                    Exit.WRONG_USE, error.where, f"no space left ({error.limit})", "free or allow more space"
                )
            ]
        case (
            errors.Diverged()
            | errors.Ignored()
            | errors.Denied()
            | errors.Mismatch()
            | errors.UnknownVersion()
        ):
            return [Failure(Exit.NO, "not verified", str(error))]
        case errors.Invalid():
            return [Failure(Exit.NO, "not verified", f"{error.field}: {error.why}")]
        case errors.Missing():
            hint = f"another {option}, or later"
            return [
                Failure(Exit.NOT_REACHED, f"{error.what} {error.key}", "nobody who was asked holds it", hint)
            ]
        case errors.Busy():
            return [Failure(Exit.NOT_REACHED, "busy", str(error), "again later")]
    return []


def _of_the_network(error: BaseException, option: str) -> list[Failure]:
    from p2p import errors
    from p2p.identity import IdentityFileBad

    match error:
        case IdentityFileBad():
            return [Failure(Exit.DAMAGED, f"identity file {error.path}", error.why, error.try_this)]
        case errors.ListenFailed():
            hint = "--listen /ip4/127.0.0.1/tcp/0 takes a free port"
            return [Failure(Exit.WRONG_USE, f"listen {error.addr}", error.why, hint)]
        case errors.RequestFailed() if error.retryable or error.code.name in (
            "ERR_NOT_FOUND",
            "ERR_UNSUPPORTED",
        ):
            why = f"{error.code.name}: {error.message}"
            return [Failure(Exit.NOT_REACHED, "the peer has no answer", why, f"another {option}, or later")]
        case errors.RequestFailed():
            return [Failure(Exit.NO, "the peer refused", f"{error.code.name}: {error.message}")]
        case errors.AnswerTooLarge() | errors.RecordRefused():
            return [Failure(Exit.NO, "not verified", str(error))]
        case errors.NetworkError():
            return [Failure(Exit.NOT_REACHED, "not reached", str(error), f"another {option}, or later")]
    return []


def _bug(error: BaseException) -> Failure:
    where = "unknown place"
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        last = frames[-1]
        where = f"{Path(last.filename).parent.name}/{Path(last.filename).name}:{last.lineno}"
    why = f"{type(error).__name__}: {error} at {where}"
    return Failure(Exit.BUG, "a bug of ours", f"{why}; please report this line to {REPORT_TO}", "--debug")
