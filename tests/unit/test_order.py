"""The order of records is a permutation per epoch, a pure function of the position, for any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.order import Order
from pipelines.training.stream import ENOUGH_TASKS, MOST_SPAN_BYTES, Spans, StageRecords, Stream


def listed(spans: Spans) -> list[tuple[int, int]]:
    return [spans[index] for index in range(len(spans))]


SHARDS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(lambda rows: sum(rows) > 0)


@given(rows=SHARDS, seed=st.integers(0, 99), mix=st.integers(1, 4))
def test_every_epoch_is_a_permutation_of_all_records(rows: list[int], seed: int, mix: int) -> None:
    order = Order(shard_rows=tuple(rows), seed=seed, mix_shards=mix)
    total = order.num_records
    everything = {(shard, row) for shard, count in enumerate(rows) for row in range(count)}
    for epoch in range(2):
        records = order.records(epoch * total, (epoch + 1) * total)
        assert {(int(shard), int(row)) for shard, row, _ in records} == everything
        assert set(records[:, 2]) == {epoch}


@given(rows=SHARDS, data=st.data())
def test_any_piece_of_the_stream_is_the_same_as_in_the_whole(rows: list[int], data: st.DataObject) -> None:
    order = Order(shard_rows=tuple(rows), seed=3, mix_shards=2)
    whole = order.records(0, 3 * order.num_records)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    np.testing.assert_array_equal(order.records(start, stop), whole[start:stop])


def test_a_stream_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match="0 records"):
        Order(shard_rows=(0, 0), seed=0)


def stream_of(rows: tuple[int, ...], span_steps: int) -> Stream:
    """Two stages whose rows say which record they are."""

    def load(records: np.ndarray) -> dict[str, np.ndarray]:
        return {"record": records[:, 0] * 1000 + records[:, 1]}

    stages = [StageRecords(order=Order(shard_rows=rows, seed=seed), load=load, source="", key="") for seed in (0, 1)]
    return Stream(stages=stages, steps=7, batch_size=12, row_bytes=8, span_steps=span_steps)


@pytest.mark.parametrize("start_step", [0, 3, 7, 9])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_batch_is_the_same_records_for_any_number_of_workers_and_any_restart(
    num_workers: int, start_step: int
) -> None:
    def batches(stream: Stream, start: int, workers: int) -> dict[int, list[int]]:
        result: dict[int, list[int]] = {}
        for first, stop in listed(stream.spans(start, workers)):
            for rank in range(workers):
                rows = stream.load(first, stop, rank, workers)
                for position, record in zip(rows["position"], rows["record"], strict=True):
                    result.setdefault(int(position) // 12, []).append(int(record))
        return result

    uninterrupted = batches(stream_of((5, 9, 4), span_steps=4), 0, 1)
    restarted = batches(stream_of((5, 9, 4), span_steps=4), start_step, num_workers)
    assert sorted(restarted) == list(range(start_step, 14))
    assert restarted == {step: records for step, records in uninterrupted.items() if step >= start_step}


def test_spans_never_cross_a_stage() -> None:
    spans = stream_of((5,), span_steps=4).spans(1, 1)
    assert listed(spans) == [(1, 5), (5, 7), (7, 11), (11, 14)]
    assert not len(stream_of((5,), span_steps=4).spans(14, 1))


@pytest.mark.parametrize("row_bytes", [8, 2**20])
def test_a_long_run_is_cut_into_few_spans_that_fit_into_memory(row_bytes: int) -> None:
    stream = replace(stream_of((5,), span_steps=1), steps=500_000, row_bytes=row_bytes)
    spans = stream.spans(0, 8)
    assert spans[0][0] == 0 and spans[len(spans) - 1][1] == stream.num_steps
    share = 2  # of 12 among 8
    assert len(spans) * 8 <= ENOUGH_TASKS + 16 or spans.size == MOST_SPAN_BYTES // (share * row_bytes)
