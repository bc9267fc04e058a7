"""Keeps progress bars and notices of the libraries out of the user's way; downloads from the Hub still show theirs."""

import datasets
import transformers


def quiet_libraries() -> None:
    """Silence transformers and datasets in this process, but for errors."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL)
