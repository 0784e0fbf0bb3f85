"""The command line: `sgd-sai COMMAND …`.

commands      the list of commands, and how they report wrong input
ctrl_c        Ctrl-C: the first ends a command in order, a later one at once
streams       what is printed: it never ends a command, whatever becomes of the terminal
secrets       addresses without their passwords
"""

from sgd_sai.cli.commands import COMMANDS, CommandError, main

__all__ = ["COMMANDS", "CommandError", "main"]
