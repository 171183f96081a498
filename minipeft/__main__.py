"""`python -m minipeft`."""

from minipeft.cli import main

main()
