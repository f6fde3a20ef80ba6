"""The exit codes of every command."""

from __future__ import annotations

__all__ = ["DONE", "ERROR", "EXIT_CODES", "INCONCLUSIVE", "INTERRUPTED", "MET", "USAGE"]

DONE, ERROR, USAGE, MET, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = {
    DONE: "Done.",
    ERROR: "An error: standard error says what failed and what to do next.",
    USAGE: "Wrong usage: a command, option or value that there is not.",
    MET: "`compare`: a condition of `--fail-if` is met. `lint`: an error was found.",
    INCONCLUSIVE: "`compare`: none is met, but one is inconclusive. `lint`: a warning was found, and no error.",
    INTERRUPTED: "Interrupted by Ctrl-C: nothing is half-written, and `bench` keeps what was measured.",
}
