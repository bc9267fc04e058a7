"""What stands on Ray: the graph, and work beside it."""
