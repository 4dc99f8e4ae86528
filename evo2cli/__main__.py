"""`python -m evo2cli` is `evo2`."""

from evo2cli.app import main

main()
