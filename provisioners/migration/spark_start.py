"""The first lines of a kernel with Spark: they stand in the kernelspec's command, because nodes need no roost."""

from __future__ import annotations

PYTHON_START = """\
def _start():
    import atexit, importlib.util, os, sys
    words = (os.environ.get("KERNEL_EXTRA_SPARK_OPTS", ""), os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell"))
    os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join(words).strip()
    names = get_ipython().user_ns
    class Later:
        def __init__(self, name):
            self.__dict__["_name"] = name
        def __getattr__(self, key):
            if key.startswith(("_repr_", "_ipython_")) or key in ("__wrapped__", "_name"):
                raise AttributeError(key)
            from pyspark.sql import SparkSession
            session = SparkSession.builder.getOrCreate()
            names.update(spark=session, sc=session.sparkContext, sql=session.sql)
            atexit.register(session.stop)
            return getattr(names[self._name], key)
    def cancel(cell):
        if isinstance(cell.error_in_exec, KeyboardInterrupt) and "pyspark" in sys.modules:
            context = sys.modules["pyspark"].SparkContext._active_spark_context
            if context:
                context.cancelAllJobs()
    if importlib.util.find_spec("pyspark"):
        get_ipython().events.register("post_run_cell", cancel)
        spark = Later("spark")
        names.update(spark=spark, sc=Later("sc"), sql=lambda query: spark.sql(query))
_start()
del _start
"""
"""Python: `spark`, `sc` and `sql` make the session at their first use, with the client's options before the others.

An interrupt of a cell also ends Spark's jobs.
"""
R_START = (
    'Sys.setenv(SPARKR_SUBMIT_ARGS = trimws(paste(Sys.getenv("KERNEL_EXTRA_SPARK_OPTS"), '
    'Sys.getenv("SPARKR_SUBMIT_ARGS")))); '
    '.libPaths(c(file.path(Sys.getenv("SPARK_HOME"), "R", "lib"), .libPaths())); '
    "library(SparkR); "
    'delayedAssign("spark", sparkR.session()); delayedAssign("sc", spark); '
    "IRkernel::main()"
)
"""R: the same for `spark` and `sc`."""
SCALA_SCRIPT = (
    'file=$1 mode=$2; shift 2; exec "$SPARK_HOME/bin/spark-submit" "$@" $KERNEL_EXTRA_SPARK_OPTS '
    '--class org.apache.toree.Main "$TOREE_JAR" --profile "$file" $mode'
)
"""Scala: a script of sh, with the connection file, Toree's options, and the arguments of spark-submit."""
