"""The grammar of the command: an object, then a verb. Verbs have a short form, and mistyped words get a suggestion."""

from typing import Any

from typer.core import TyperGroup

from csi_driver.cli.output.escape import escape
from csi_driver.cli.suggest import suggestion

SHORT_VERBS = {"ls": "list", "rm": "delete"}


class CommandGroup(TyperGroup):
    """Commands of one kind of object. `ls` is `list`, `rm` is `delete`; other aliases are hidden commands."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name or its short form; None if there is none."""
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, SHORT_VERBS.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the words begin with. Refuses an unknown one with the nearest."""
        word = args[0]
        if not word.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, word) is None:
            known = [name for name, command in self.commands.items() if not command.hidden]
            ctx.fail(f"no command is called {word!r}{suggestion(word, known)}: `{ctx.command_path} --help` lists them")
        return super().resolve_command(ctx, args)


class RootGroup(CommandGroup):
    """The command itself. Errors of usage quote what was typed, and are escaped here."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the options before the subcommand."""
        try:
            return super().make_context(*args, **options)
        except Exception as error:
            _escape_message(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Parse and run the subcommand."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            _escape_message(error)
            raise


def _escape_message(error: Exception) -> None:
    message = getattr(error, "message", None)
    # The one that prints the help, of many lines, quotes nothing.
    if isinstance(message, str) and type(error).__name__ != "NoArgsIsHelpError":
        error.message = escape(message)  # type: ignore[attr-defined]
