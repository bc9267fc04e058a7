"""The map of an output: a position in two dimensions and the neighbours of each row, next to the parts."""
