"""The Ray engine: the dataflow of a run, single tasks, and features inside a user's own Ray program."""
