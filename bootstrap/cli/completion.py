"""`aw completion`: the script that teaches a shell to complete `aw`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bootstrap.cli.arguments import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash:  aw completion bash > ~/.local/share/bash-completion/completions/aw
    zsh:   aw completion zsh > "${fpath[1]}/_aw"
    fish:  aw completion fish > ~/.config/fish/completions/aw.fish
    """
    from bootstrap.cli import program

    kind = get_completion_class(shell)
    assert kind is not None  # the choices above are those that click knows
    click.echo(kind(program, {}, "aw", "_AW_COMPLETE").source())
