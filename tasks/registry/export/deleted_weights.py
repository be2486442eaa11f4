"""Deleting the weights of a version in MLflow; its record, its card and the metrics of its runs stay."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tasks.registry.export.mlflow_model import CARD, IS_EXTERNAL
from tasks.registry.mlflow_runs.store import Store

if TYPE_CHECKING:
    from mlflow.entities import FileInfo
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS_DELETED = "weights_deleted"  # a version's tag: the day


class Size(NamedTuple):
    """What a deletion takes away."""

    files: int
    size: int  # bytes


def weights_size(store: Store, version: "ModelVersion") -> Size:
    """Count what MLflow holds of a version besides its card."""
    model_id = str(version.tags["model_id"])
    files = [file for top in _deletable(store, model_id) for file in _files(store, model_id, top)]
    return Size(len(files), sum(file.file_size or 0 for file in files))


def delete_weights(store: Store, version: "ModelVersion", day: str) -> None:
    """Delete the weights of a version, which then says so; repeatable without harm.

    Args:
        store: the registry.
        version: of the policy or the reward model.
        day: as the version shall say it.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model_id = str(version.tags["model_id"])
    # First what tells of it: a version must not claim weights that are half gone.
    if WEIGHTS_DELETED not in version.tags:
        store.client.set_model_version_tag(version.name, version.version, WEIGHTS_DELETED, day)
    logged = store.client.get_logged_model(model_id)
    if IS_EXTERNAL not in logged.tags:
        store.client.set_logged_model_tags(model_id, {IS_EXTERNAL: "true"})
    artifacts = get_artifact_repository(logged.artifact_location, tracking_uri=store.uri)
    for found in _deletable(store, model_id):
        artifacts.delete_artifacts(found.path)


def forget_deletion(store: Store, version: "ModelVersion") -> None:
    """Have a version not say any more that its weights are gone: they have been made again."""
    if WEIGHTS_DELETED in version.tags:
        store.client.delete_model_version_tag(version.name, version.version, WEIGHTS_DELETED)


def _deletable(store: Store, model_id: str) -> "list[FileInfo]":
    return [file for file in store.client.list_logged_model_artifacts(model_id) if file.path != CARD]


def _files(store: Store, model_id: str, found: "FileInfo") -> "Iterator[FileInfo]":
    if not found.is_dir:
        yield found
        return
    for each in store.client.list_logged_model_artifacts(model_id, found.path):
        yield from _files(store, model_id, each)
