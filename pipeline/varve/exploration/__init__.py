"""What is in a finished output and how its run went: the report page and the map."""
