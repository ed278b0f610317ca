"""The training step's benchmark from inside: what it compares, counts, holds, and leaves behind when it is cut off."""

import json

import pytest
import torch

TINY = {"towers": "tiny", "batch": 4, "image_size": 32, "queue": 8, "checkpointing": False, "compile": False}


@pytest.fixture
def step():
    import step

    return step


@pytest.fixture
def options(step):
    return step.Options("cpu", "float32", torch.get_num_threads(), 1, 0, False, None, TINY)


@pytest.mark.parametrize("phase", [1, 2])
def test_a_wrong_gradient_shows_though_the_loss_is_right(step, options, phase, monkeypatch):
    ours = step.Step(phase, options)
    loss, gradient = ours.differences()
    assert loss < 1e-5 and 0 < gradient < 1e-4
    assert all(parameter.grad is None for parameter in ours.trained) and ours.module.training

    right = ours.module.encode

    def half_the_images_gradient(*arguments, **named):
        vectors, losses = right(*arguments, **named)
        image = vectors["image"]
        return {**vectors, "image": image.detach() + (image - image.detach()) / 2}, losses

    monkeypatch.setattr(ours.module, "encode", half_the_images_gradient)
    loss, gradient = ours.differences()
    assert loss < 1e-5 and gradient > step.BOUNDS["float32"]["gradient"]


def test_gradients_are_compared_as_one_vector(step, options, monkeypatch):
    ours = step.Step(1, options)
    one, two, none = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]), torch.zeros(())
    answers = {"fast": (1.0, [one, two, none]), "textbook": (2.0, [one * 0, two, torch.tensor([3.0])])}
    monkeypatch.setattr(ours, "_gradients", answers.get)
    assert ours.differences() == (0.5, pytest.approx((9 + 9) ** 0.5 / 5))


def test_a_path_alone_holds_nothing_of_the_other(step, options):
    fast, plain = (step.Step(2, options, [which]) for which in step.PATHS)
    assert (list(fast.batches), list(plain.batches)) == (["fast"], ["textbook"])
    assert not fast.queues and len(fast.module.text_ring.keys) == 8
    assert [queue.keys.shape[1] for queue in plain.queues] == [8, 8]
    assert plain.module.text_ring.keys.numel() == plain.module.image_ring.keys.numel() == 0
    for path in (fast, plain):
        (which,) = path.batches
        for _ in range(2):
            (loss,) = path.run(which)
        assert loss.isfinite()


@pytest.fixture
def fractions(monkeypatch):
    """Of a GPU's memory, as they are set; of one that holds 160 GB."""
    set_to = []
    memory = type("Properties", (), {"total_memory": 160e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    return set_to


@pytest.mark.parametrize("limit", [0, 7, 8, 63, 64, 100, 500])
def test_the_largest_batch_is_found_to_a_sixteenth(step, options, fractions, limit, monkeypatch):
    monkeypatch.setattr(step, "_fits", lambda phase, which, options, batch: batch <= limit)
    found = step.largest_batch(1, "fast", options, 80)
    assert limit - max(8, limit // 16) <= found <= limit
    assert fractions == [0.5, 1.0]


def test_the_gpus_memory_is_given_back_whatever_happens(step, options, fractions, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no memory of the other kind")

    monkeypatch.setattr(step, "_fits", broken)
    with pytest.raises(RuntimeError, match="other kind"):
        step.largest_batch(1, "fast", options, 80)
    assert fractions == [0.5, 1.0]


def test_rows_are_there_when_the_search_for_the_largest_batch_is_cut_off(step, tmp_path, monkeypatch):
    def largest_batch(phase, which, options, gigabytes):
        if which == "textbook":
            raise KeyboardInterrupt
        return 640

    monkeypatch.setattr(step, "measure", lambda phase, options: {"name": "a row", "notes": []})
    monkeypatch.setattr(step, "largest_batch", largest_batch)
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        step.main(["--device", "cuda", "--phases", "1", "--largest", "80", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert row["name"] == "a row" and row["fast_largest_batch"] == 640


def test_products_are_counted_as_by_hand(step):
    import operations

    from lexlip.ops.attention import biased_attention
    from lexlip.ops.max_logits import max_logits

    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, requires_grad=True)
    one = 2 * (2 * 3) * 5 * 5 * 4  # a multiplication and an addition; samples and heads; L x L x D
    assert operations.products(lambda: biased_attention(q, k, v, bias)) == 2 * one
    assert operations.products(lambda: biased_attention(q, k, v, bias).sum().backward()) == (2 + 5) * one

    hidden, weight, bias = (
        torch.randn(2, 5, 4, requires_grad=True),
        torch.randn(7, 4, requires_grad=True),
        torch.zeros(7),
    )
    assert operations.products(lambda: max_logits(hidden, weight, bias).sum().backward()) == 2 * 2 * 5 * 4 * 7
    assert operations.products(lambda: hidden @ weight.T) == 2 * 2 * 5 * 4 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_references_padding_widens_no_logit(step, dtype):
    import reference

    mask = torch.tensor([[1, 1, 0]])
    every = reference.logits(lambda states: states, torch.tensor([[[1.0], [-2.0], [3.0]]], dtype=dtype), mask)
    assert every.dtype == dtype and every[0, :2, 0].tolist() == [1, -2] and every[0, 2, 0] < -6e4
