"""`python -m cofield` is the command line."""

from cofield.cli import main

main()
