"""Folder layouts of the public datasets, as data.

A layout is a regular expression over paths without their extension. Its group `side` says whether a file is the
low or the normal one, and the other groups, joined, are the key that both sides of a pair share.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FolderLayout:
    """The arrangement of a dataset's files below its root.

    Attributes:
        folders: folders that are listed; empty lists the whole root.
        pattern: finds `side` and the key in a path without extension.
        shape: the layout in words, for errors.
        is_test: whether a key belongs to the official test set.
        shared: many low images of a scene folder share its first normal one.
        skip: found in the names of normal images that are not to be used; None uses all.
        test_lists: names of the file that lists the official test scenes, any of which may be in use; empty if the
            dataset has no such file.
        scene_of_take: maps a scene's folder to the scene's name, where a scene has several folders.
    """

    folders: tuple[str, ...]
    pattern: re.Pattern[str]
    shape: str
    is_test: Callable[[Mapping[str, str]], bool]
    shared: bool = False
    skip: re.Pattern[str] | None = None
    test_lists: tuple[str, ...] = ()
    scene_of_take: Callable[[str], str] = str


LOW_SIDES = {"low", "input", "short", "lq"}
# The test scenes that the sRGB distribution of SDSD is used with (Xu et al., CVPR 2022, and later work).
SDSD_TEST_SCENES = frozenset(
    [
        "pair1",
        "pair4",
        "pair9",
        "pair11",
        "pair19",
        "pair21",
        "MVI_0898",
        "MVI_0906",
        "MVI_0928",
        "MVI_0975",
        "MVI_0997",
        "MVI_1001",
        "MVI_1003",
        "MVI_1026",
        "MVI_1030",
        "MVI_1032",
    ]
)


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)


def sdsd_scene(folder: str) -> str:
    """The scene of a video's folder; `pair1_2` is a second take of `pair1`."""
    return folder.split("_2", maxsplit=1)[0] if folder.startswith("pair") else folder


def _is_test_part(groups: Mapping[str, str]) -> bool:
    return any(word in groups["part"].lower() for word in ("test", "eval"))


FOLDER_LAYOUTS: Mapping[str, FolderLayout] = {
    "lolv1": FolderLayout(
        ("our485", "eval15"),
        _regex(r"(?P<part>our485|eval15)/(?P<side>low|high)/(?P<name>[^/]+)"),
        "{our485,eval15}/{low,high}/NAME",
        _is_test_part,
    ),
    "lolv2-real": FolderLayout(
        ("Real_captured",),
        _regex(r"(?P<part>Real_captured/(?:Train|Test))/(?P<side>Low|Normal)/(?:low|normal)?(?P<name>[^/]+)"),
        "Real_captured/{Train,Test}/{Low,Normal}/{low,normal,}NAME",
        _is_test_part,
    ),
    "lolv2-synthetic": FolderLayout(
        ("Synthetic",),
        _regex(r"(?P<part>Synthetic/(?:Train|Test))/(?P<side>Low|Normal)/(?:low|normal)?(?P<name>[^/]+)"),
        "Synthetic/{Train,Test}/{Low,Normal}/{low,normal,}NAME",
        _is_test_part,
    ),
    "lsrw": FolderLayout(
        (),
        _regex(r"(?P<part>(?:Training data|Training|Train|Eval)/(?:Huawei|Nikon))/(?P<side>low|high)/(?P<name>[^/]+)"),
        "{Training data,Eval}/{Huawei,Nikon}/{low,high}/NAME",
        _is_test_part,
    ),
    "sdsd": FolderLayout(
        (),
        _regex(r"(?P<part>(?:in|out)door[^/]*)/(?P<side>input|GT)/(?P<scene>[^/]+)/(?P<name>[^/]+)"),
        "{indoor,outdoor}_static_np/{input,GT}/SCENE/FRAME",
        lambda groups: sdsd_scene(groups["scene"]) in SDSD_TEST_SCENES,
        scene_of_take=sdsd_scene,
    ),
    "sid": FolderLayout(
        (),
        _regex(r"(?P<side>short|long)_sid2[^/]*/(?P<scene>[^/]+)/(?P<name>[^/]+)"),
        "{short,long}_sid2/SCENE/NAME",
        # SID numbers its scenes 0xxxx for training, 1xxxx for testing and 2xxxx for validation.
        lambda groups: groups["scene"].startswith("1"),
        shared=True,
    ),
    "smid": FolderLayout(
        (),
        _regex(r"SMID_(?P<side>LQ|Long)_[^/]+/(?P<scene>[^/]+)/(?P<name>[^/]+)"),
        "SMID_{LQ,Long}_np/SCENE/NAME, and test_list.txt",
        lambda _: False,
        shared=True,
        # The folders of the normal frames also hold half-exposed ones.
        skip=re.compile("half"),
        # Either name is in use, at the root or among the normal images.
        test_lists=("test_list.txt", "text_list.txt"),
    ),
}
