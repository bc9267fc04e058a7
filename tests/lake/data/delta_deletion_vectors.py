"""Makes the table beside this file, in an environment with pysail 0.7.2 and pyspark-client: python FILE FOLDER.

20 rows in two partitions; version 1 has all of them; version 2 lacks doc_id 3, 4 and 18 by deletion vectors.
"""

import sys

from pysail.spark import SparkConnectServer
from pyspark.sql import SparkSession

server = SparkConnectServer()
server.start()
spark = SparkSession.builder.remote(f"sc://localhost:{server.listening_address[1]}").getOrCreate()
spark.sql(
    f"CREATE TABLE docs (doc_id BIGINT, body STRING, lang STRING) USING delta LOCATION '{sys.argv[1]}' "
    "PARTITIONED BY (lang) TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
)
rows = [(number, f"text {number}", "de" if number % 2 else "en") for number in range(20)]
docs = spark.createDataFrame(rows, "doc_id BIGINT, body STRING, lang STRING").repartition(1)
docs.write.format("delta").mode("append").insertInto("docs")
spark.sql("DELETE FROM docs WHERE doc_id IN (3, 4, 18)")
