"""Keeps progress bars and notices of the libraries out of the user's way; downloads from the Hub still show theirs.

Each library is imported only by who needs it: a process that reads files should not wait for transformers.
"""


def quiet_transformers() -> None:
    """Silence transformers in this process, but for errors."""
    import transformers  # noqa: PLC0415 (see above)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def quiet_datasets() -> None:
    """Silence datasets in this process, but for errors."""
    import datasets  # noqa: PLC0415 (a second, which most processes do without)

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL)
