"""`python -m vitdeploy`."""

from vitdeploy.cli import main

main()
