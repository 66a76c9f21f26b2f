"""Work on one batch while the next is made."""

import threading

import pytest
import torch

from callbacks.background import Background


@pytest.mark.parametrize("workers", [0, 3])
def test_all_items_are_done_in_order_without_gradients(workers):
    def work(item):
        return item, (torch.ones(1, requires_grad=True) * item).requires_grad

    with torch.inference_mode():
        background = Background(work, workers)
        results = background.submit([1, 2, 3]) + background.submit([4, 5]) + background.wait()
    background.close()
    assert results == [(item, False) for item in (1, 2, 3, 4, 5)]


def test_the_next_batch_begins_when_the_one_before_is_done():
    release, order = threading.Event(), []

    def work(item):
        if item == "slow":
            assert release.wait(20)
        order.append(item)

    background = Background(work, 2)
    assert background.submit(["slow"]) == []
    order.append("made")
    threading.Timer(0.1, release.set).start()
    background.submit(["quick"])
    background.wait()
    background.close()
    assert order == ["made", "slow", "quick"]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_work_raises_is_raised(workers):
    def work(item):
        raise OSError(f"disk full at {item}")

    background = Background(work, workers)
    with pytest.raises(OSError, match="disk full at 1"):
        assert background.submit([1, 2]) + background.wait()
    background.close()


def test_closing_finishes_what_was_submitted():
    release, done = threading.Event(), []

    def work(item):
        assert release.wait(20)
        done.append(item)
        if item == 1:
            raise OSError("disk full")

    background = Background(work, 1)
    background.submit([1, 2, 3])
    threading.Timer(0.1, release.set).start()
    background.close()
    assert done == [1, 2, 3]
