"""`python -m splitfed` is `splitfed`."""

from splitfed.cli.main import main

if __name__ == "__main__":
    main()
