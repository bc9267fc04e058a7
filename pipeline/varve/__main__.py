"""`python -m varve NAME ...`: the same as `varve NAME ...`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:  # Python puts the current folder first, whose files would shadow modules
        del sys.path[0]
    from varve.cli.main import main

    main()
