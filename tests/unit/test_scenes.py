"""Splits by scene: disjoint, stable when pairs are added, and never against what was given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.pairs.scenes import Member, assign, draw_split, group_scenes, scene_labels


def member(pair_id: str, *labels: str, split: str = "", committed: bool = False) -> Member:
    return Member(pair_id=pair_id, labels=labels, split=split, committed=committed)


label_lists = st.lists(
    st.lists(st.sampled_from([f"label{i}" for i in range(12)]), min_size=1, max_size=2), min_size=1, max_size=30
)


@given(label_lists, st.floats(0, 0.99), st.integers(0, 5))
def test_pairs_that_share_a_label_share_their_split(labels: list[list[str]], share: float, seed: int) -> None:
    members = [member(f"p{i}", *own) for i, own in enumerate(labels)]
    splits = assign(members, share, seed).splits
    assert set(splits) == {m.pair_id for m in members}
    for one in members:
        for other in members:
            if set(one.labels) & set(other.labels):
                assert splits[one.pair_id] == splits[other.pair_id]


@given(label_lists, st.permutations(range(30)))
def test_the_order_of_pairs_does_not_matter(labels: list[list[str]], order: list[int]) -> None:
    members = [member(f"p{i}", *own) for i, own in enumerate(labels)]
    shuffled = [members[i] for i in order if i < len(members)]
    assert assign(members, 0.5, 0) == assign(shuffled, 0.5, 0)


@given(label_lists, st.integers(0, 30))
def test_adding_pairs_never_moves_one_and_never_spans_splits(labels: list[list[str]], cut: int) -> None:
    members = [member(f"p{i}", *own) for i, own in enumerate(labels)]
    first = assign(members[:cut], 0.5, 0)
    kept = [member(m.pair_id, *m.labels, split=first.splits[m.pair_id], committed=True) for m in members[:cut]]
    second = assign([*kept, *members[cut:]], 0.5, 0)
    assert not set(first.splits) & set(second.splits)
    assert set(second.splits) | set(second.left_out) == {m.pair_id for m in members[cut:]}
    splits = {**first.splits, **second.splits}
    placed = [m for m in members if m.pair_id in splits]
    for one in placed:
        for other in placed:
            if set(one.labels) & set(other.labels):
                assert splits[one.pair_id] == splits[other.pair_id]


def test_groups_are_linked_through_other_pairs() -> None:
    linked = [member("a", "x"), member("b", "x", "y"), member("c", "y"), member("d", "z")]
    groups = group_scenes(linked)
    assert sorted(sorted(m.pair_id for m in together) for together in groups.values()) == [["a", "b", "c"], ["d"]]


def test_the_layouts_scene_and_equal_normal_images_both_count() -> None:
    members = [
        member("a", *scene_labels("n1", "hall")),
        member("b", *scene_labels("n2", "hall")),
        member("c", *scene_labels("n2", "")),
    ]
    assert len(group_scenes(members)) == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_share_of_validation_scenes(share: float) -> None:
    drawn = [draw_split(f"scene{i}", share, seed=3) for i in range(4000)]
    assert abs(drawn.count("validation") / len(drawn) - share) < 0.02
    assert drawn == [draw_split(f"scene{i}", share, seed=3) for i in range(4000)]


def test_another_seed_draws_other_scenes() -> None:
    assert [draw_split(f"s{i}", 0.5, 0) for i in range(64)] != [draw_split(f"s{i}", 0.5, 1) for i in range(64)]


def test_an_official_test_set_does_not_grow() -> None:
    result = assign([member("test", "x", split="test"), member("leak", "x"), member("other", "y")], 0.0, 0)
    assert result.splits == {"test": "test", "other": "train"}
    assert result.left_out == {"leak": "it shares its scene with test in test"}


def test_a_given_split_holds_for_the_scene() -> None:
    result = assign([member("a", "x", split="validation"), member("b", "x")], 0.0, 0)
    assert result.splits == {"a": "validation", "b": "validation"}


def test_contradicting_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a is to be in test and b in train.*give both the same split"):
        assign([member("a", "x", split="test"), member("b", "x", split="train")], 0.0, 0)


def test_a_pair_that_links_two_committed_scenes_is_left_out() -> None:
    committed = [
        member("a", "x", split="train", committed=True),
        member("b", "y", split="validation", committed=True),
    ]
    result = assign([*committed, member("bridge", "x", "y")], 0.5, 0)
    assert result.splits == {}
    assert result.left_out == {"bridge": "it shares its scene with a in train and b in validation"}


def test_a_test_pair_whose_scene_is_trained_on_is_left_out() -> None:
    result = assign([member("a", "x", split="train", committed=True), member("t", "x", split="test")], 0.0, 0)
    assert result.left_out == {"t": "it shares its scene with a in train"}
