"""Ray Train's list of checkpoints, after it or a checkpoint was damaged."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.training.checkpoints import STATE_FILE
from pipelines.training.recovery import SNAPSHOT, drop_damaged, rebuild_list


def make_checkpoint(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)
    save_file({"weights": torch.ones(100)}, root / name / STATE_FILE)
    return root / name / STATE_FILE


def listed(root: Path) -> list[str]:
    found = json.loads((root / SNAPSHOT).read_text())
    names = [result["checkpoint_dir_name"] for result in found["checkpoint_results"]]
    newest = found["latest_checkpoint_result"]
    assert (newest["checkpoint_dir_name"] if newest else None) == (names[-1] if names else None)
    assert len(found["checkpoint_report_indices"]) == len(names)
    return names


def test_a_list_without_damage_is_left_as_it_is(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "step-000000020")
    whole = rebuild_list(str(tmp_path))
    text = json.dumps({**whole, "latest_checkpoint_result": whole["checkpoint_results"][-1]}, indent=3)
    (tmp_path / SNAPSHOT).write_text(text)
    drop_damaged(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == text


def test_checkpoints_that_are_cut_short_or_gone_leave_the_list(tmp_path: Path) -> None:
    files = [make_checkpoint(tmp_path, f"step-0000000{step}0") for step in (2, 4, 6)]
    (tmp_path / SNAPSHOT).write_text(json.dumps(rebuild_list(str(tmp_path))))
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    drop_damaged(str(tmp_path))
    assert listed(tmp_path) == ["step-000000040"]


def test_a_damaged_list_is_made_anew_even_if_there_is_nothing_to_list(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text('{"ray_version":"2.6')
    drop_damaged(str(tmp_path))
    assert listed(tmp_path) == []
    make_checkpoint(tmp_path, "step-000000020")
    (tmp_path / SNAPSHOT).write_text("")
    drop_damaged(str(tmp_path))
    assert listed(tmp_path) == ["step-000000020"]
