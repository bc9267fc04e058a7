"""Search indexes of a finished output: read, built, proved, published."""
