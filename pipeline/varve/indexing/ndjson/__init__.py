"""Documents for OpenSearch and Elasticsearch: files of bulk lines, and their sending."""
