#!/bin/sh
# Fill /checkout once: a clone of TRUELINE_GIT_URL, whose DVC remote is the bucket TRUELINE_BUCKET. Run again, it changes
# nothing but the remote's address.
set -eu
folder=${TRUELINE_CHECKOUT:-/checkout}
if ! git -C "$folder" rev-parse --git-dir >/dev/null 2>&1; then
    git clone "${TRUELINE_GIT_URL:?name the git repository to clone}" "$folder"
fi
cd "$folder"
# In .dvc/config.local, which git does not follow. Key and secret stay in the environment.
dvc remote add --local --default --force storage "s3://${TRUELINE_BUCKET:?name the bucket of the DVC remote}"
if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
    dvc remote modify --local storage endpointurl "$AWS_ENDPOINT_URL"
fi
