"""Running a command line: `mmspeech`, and the programs of bin/."""

import sys
from typing import NoReturn

import typer

from mmspeech.errors import BadItem, UserError


def call(app: typer.Typer, name: str = "mmspeech") -> NoReturn:
    """Run an app on the command line. Exit code 2 and one line for a user's mistake; a traceback only for our own."""
    try:
        code = app(prog_name=name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit("stopped")
    except (UserError, BadItem) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        print(f"error: {error.filename}: {error.strerror}; give another path", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `mmspeech ... | head`
        sys.exit(141)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # The parser's own: a missing argument, an unknown option. Without a message it has printed the help.
        if message := error.format_message():
            where = getattr(getattr(error, "ctx", None), "command_path", name)
            print(f"error: {message.rstrip('.')}; see {where} --help", file=sys.stderr)
        sys.exit(2)
    finally:
        if dist := sys.modules.get("mmspeech.dist"):  # else nobody joined a process group, and torch need not load
            dist.stop()
