"""MLflow's artifacts in S3, deleted one by one where a server does not take many in one request.

MLflow loads this class for `s3://` wherever Trueline is installed (pyproject.toml names it), its server's process too.
"""

from typing import Any

from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from tasks.common.network import S3_BULK_REFUSALS


class S3Artifacts(S3ArtifactRepository):
    """Like MLflow's own, but for deletion."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or a folder with all that is in it; without a path, everything.

        Raises:
            botocore.exceptions.ClientError: the server refuses.
        """
        from botocore.exceptions import ClientError

        try:
            S3ArtifactRepository.delete_artifacts(self, artifact_path)
        except ClientError as error:
            if error.response["Error"]["Code"] not in S3_BULK_REFUSALS:
                raise
            _delete_each(self, artifact_path)


def _delete_each(artifacts: Any, artifact_path: str | None) -> None:  # noqa: ANN401 (MLflow has no types here)
    bucket, root = artifacts.parse_s3_compliant_uri(artifacts.artifact_uri)
    path, client = "/".join(part for part in (root, artifact_path) if part).rstrip("/"), artifacts._get_s3_client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=path):
        for key in (found["Key"] for found in page.get("Contents", ())):
            if not path or key == path or key.startswith(f"{path}/"):  # not what only begins like it
                client.delete_object(Bucket=bucket, Key=key)
