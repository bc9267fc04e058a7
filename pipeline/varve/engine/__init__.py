"""The Ray engine: the dataflow of a run, tasks beside it, and features inside a user's own Ray program."""
