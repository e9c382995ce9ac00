"""The command line. Starts in a moment: torch is loaded only by the commands that compute.

Each command lives in a small module; nothing but words for the terminal may stand here.
"""

from app.cli.command_line import main

__all__ = ["main"]
