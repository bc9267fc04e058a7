"""Statistics of the texts and vectors of an output, from samples and streamed columns."""
