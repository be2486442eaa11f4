#!/bin/sh
# Start MLflow with its users. Of their database MLflow reads the address from a file alone, so it is written here, in
# memory. MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION, and the first administrator, are in the environment.
set -eu
umask 077
export MLFLOW_AUTH_CONFIG_PATH="${TMPDIR:-/tmp}/mlflow-auth.ini"
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
database_uri = ${MLFLOW_AUTH_DATABASE_URI:?name the database of the users}
default_permission = ${MLFLOW_AUTH_DEFAULT_PERMISSION:-READ}
END
mkdir -p "${TMPDIR:-/tmp}/mlflow-metrics"
exec mlflow server --app-name basic-auth --host "${MLFLOW_LISTEN:-0.0.0.0}" --port "${MLFLOW_LISTEN_PORT:-5000}" \
    --workers "${MLFLOW_SERVER_WORKERS:-2}" --expose-prometheus "${TMPDIR:-/tmp}/mlflow-metrics"
