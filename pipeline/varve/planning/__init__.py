"""Plans of jobs: resolved values, part sizes, the dry run of functions, and estimates of speed and cost."""
