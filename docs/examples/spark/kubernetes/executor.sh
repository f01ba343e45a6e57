#!/bin/sh
# The entry point of an image for Spark on Kubernetes. Spark starts an executor's container with the argument `executor`.
# roost starts a kernel's container with a command of its own, which replaces this one.
set -eu
[ "${1:-}" = executor ] || exec "$@"
options=$(env | sed -n 's/^SPARK_JAVA_OPT_[0-9]*=//p')
set -f # an option may have a star
IFS='
'
# shellcheck disable=SC2086 # one option on each line
exec java $options "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
  -cp "$SPARK_HOME/jars/*:${SPARK_EXTRA_CLASSPATH:-}" org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
  --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
  --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" --podName "$SPARK_EXECUTOR_POD_NAME" \
  --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID"
