"""`python -m minipeft.conformance.mutants` writes docs/mutants.md."""

from minipeft.conformance.mutants.killing import main

if __name__ == "__main__":
    main()
