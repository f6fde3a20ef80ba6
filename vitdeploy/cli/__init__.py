"""The command line: parse, call the library once, render."""

from vitdeploy.cli.app import main

__all__ = ["main"]
