"""The command line: `sgd-sai COMMAND …`.

commands      the list of commands, and how they report wrong input
ctrl_c        Ctrl-C: the first ends a command in order, a later one at once
console       tables, sentences and progress
printable     what of a text can be shown
secrets       addresses without their passwords
streams       what is printed: it never ends a command, whatever becomes of the terminal
"""

from sgd_sai.cli.commands import COMMANDS, CommandError, main

__all__ = ["COMMANDS", "CommandError", "main"]
