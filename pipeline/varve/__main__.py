"""`python -m varve NAME ...`: the same as `varve NAME ...`."""

from varve.cli.main import main

if __name__ == "__main__":
    main()
