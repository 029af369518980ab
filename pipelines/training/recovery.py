"""Lets a run resume from its newest undamaged checkpoint; Ray Train by itself insists on the newest."""

import json
import logging
from typing import Any

from pipelines import storage
from pipelines.training.checkpoints import STATE_FILE, STEP_PREFIX

# Ray Train's list of a run's checkpoints, in the same folder.
SNAPSHOT = "checkpoint_manager_snapshot.json"
HEADER_LENGTH_BYTES = 8

logger = logging.getLogger(__name__)


def drop_damaged(checkpoints: str) -> None:
    """Removes missing and truncated checkpoints from Ray Train's list; rebuilds the list if it is damaged itself.

    Args:
        checkpoints: URL of the folder that holds them.
    """
    url = storage.join(checkpoints, SNAPSHOT)
    if not storage.exists(url):
        return
    try:
        listed = found = json.loads(storage.read_bytes(url))
    except ValueError:
        listed, found = rebuild_list(checkpoints), None
        logger.warning("%s was damaged and has been rebuilt from the checkpoints in its folder", url)
    numbered = zip(listed["checkpoint_results"], listed["checkpoint_report_indices"], strict=True)
    whole = []
    for result, number in numbered:
        if is_whole(checkpoints, result["checkpoint_dir_name"]):
            whole.append((result, number))
        else:
            name = result["checkpoint_dir_name"]
            logger.warning("the run resumes without %s of %s, which is gone or damaged", name, checkpoints)
    kept = {
        **listed,
        "checkpoint_results": [result for result, _ in whole],
        "checkpoint_report_indices": [number for _, number in whole],
        "latest_checkpoint_result": whole[-1][0] if whole else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
    }
    if kept != found:
        storage.write_bytes(url, json.dumps(kept).encode())


def rebuild_list(checkpoints: str) -> dict[str, Any]:
    """Ray Train's list, as far as it follows from the names of the checkpoints' folders."""
    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": int(name.removeprefix(STEP_PREFIX))}}
        for name in storage.list_folders(checkpoints)
        if name.startswith(STEP_PREFIX)
    ]
    return {
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }


def is_whole(checkpoints: str, name: str) -> bool:
    """Whether a checkpoint's file exists and has the length that its header states."""
    url = storage.join(checkpoints, name, STATE_FILE)
    try:
        size = storage.file_size(url)
        length = int.from_bytes(storage.read_range(url, 0, HEADER_LENGTH_BYTES), "little")
        header = json.loads(storage.read_range(url, HEADER_LENGTH_BYTES, min(size, HEADER_LENGTH_BYTES + length)))
    except (FileNotFoundError, ValueError):
        return False
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    return bool(size == HEADER_LENGTH_BYTES + length + max(ends))
