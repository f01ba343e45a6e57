"""Cells for a kernel with Spark, on any cluster."""

from __future__ import annotations

SUM = """
import os, socket, time
from pyspark.sql import SparkSession

context = SparkSession.builder.getOrCreate().sparkContext

def find_executor(_):
    time.sleep(0.5)
    return os.environ.get("CONTAINER_ID") or socket.gethostname()

total = context.parallelize(range(1000), 8).sum()
executors = sorted(set(context.parallelize(range(8), 8).map(find_executor).collect()))
application = context.applicationId
"""
"""Code that sets `total` to 499500, `executors` to the containers or pods of the executors, and `application`."""
LONG_JOB = """
import threading

def announce():
    tracker = context.statusTracker()
    stages = []
    while not any(stage and stage.numActiveTasks for stage in stages):
        time.sleep(0.1)
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    print("runs", flush=True)

threading.Thread(target=announce).start()
context.parallelize(range(4), 4).foreach(lambda _: time.sleep(600))
"""
"""A job that takes all executors of `SUM` for 20 minutes. It prints a line once its first task runs."""
