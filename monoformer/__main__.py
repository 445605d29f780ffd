"""`python -m monoformer` is the command line, where the `monoformer` script is not on the path."""

from monoformer.cli import main

if __name__ == "__main__":
    main()
