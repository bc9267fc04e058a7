"""The Ray cluster of a run: connection, nodes, placement of the work, and the model's files on every node."""
