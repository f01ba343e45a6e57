# state: spark, whose Java process begins with the kernel's descriptors and signals
# end: killed
# needs: pyspark

# %%
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
print(spark.range(10).selectExpr("sum(id)").collect())
spark.stop()
