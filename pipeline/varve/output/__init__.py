"""The output: its Arrow schema, part files, part records and the manifest."""
