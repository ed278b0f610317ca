"""Two CPU processes against one: the same loss, gradient, queues and recall for the same global batch."""

import multiprocessing
import traceback
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lexlip.evaluate import recall
from lexlip.models.lexlip import LexLIP
from lexlip.train.batch_norm import average_statistics
from lexlip.train.build import build_model
from lexlip.train.losses import flops
from lexlip.train.step import cached_backward, split_batch
from lexlip.utils.distributed import (
    gather_many,
    gather_objects,
    gather_rows,
    gather_with_grad,
    rank,
    sum_over_ranks,
    world_size,
)  # fmt: skip
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

WORDS = {
    "push_floor": 1.0, "own_weights": True, "expansion_control": "terms", "expansion_start": 0.5, "penalty_text": "l1",
    "flops_threshold": 3, "target_terms_image": 9.0, "joint_dim": 6, "bottleneck_norm": True,
}  # fmt: skip
OFFICIAL = {"momentum_update": "micro_batch", "queue_update": "micro_batch", "queue_start": "noise"}
pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs fork and gloo",
)


@pytest.fixture
def in_two_processes(tmp_path):
    """Runs function(rank) in two processes of one group; returns what they gave, in rank order."""

    def child(number, function, pipe):
        try:
            dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=number, world_size=2)
            pipe.send((True, function(number)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))

    def run(function):
        context = multiprocessing.get_context("fork")
        pipes, children = [], []
        for number in range(2):
            here, there = context.Pipe()
            children.append(context.Process(target=child, args=(number, function, there), daemon=True))
            children[-1].start()
            pipes.append(here)
        results = []
        for pipe in pipes:
            if not pipe.poll(60):
                results.append((False, "no answer in 60 seconds: the processes wait for each other"))
                continue
            results.append(pipe.recv())
        for process in children:
            process.kill()
            process.join()
        for worked, value in results:
            assert worked, value
        return [value for _, value in results]

    return run


def test_one_process_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert gather_with_grad(x) is x and sum_over_ranks(x) is x
    assert torch.equal(gather_rows(x), x) and not gather_rows(x).requires_grad
    assert gather_objects("a") == ["a"]


def test_collectives_with_different_numbers_of_rows(in_two_processes):
    def work(number):
        x = torch.full((1 + 2 * number, 2), float(number + 1), requires_grad=True)
        everything = gather_with_grad(x)
        scale = torch.arange(8.0).view(4, 2)
        (everything * scale).sum().backward()
        y = torch.tensor([2.0 + number], requires_grad=True)
        (sum_over_ranks(y) ** 2).sum().backward()
        return everything.tolist(), x.grad.tolist(), y.grad.tolist(), gather_objects(number), (world_size(), rank())

    one, two = in_two_processes(work)
    assert one[0] == two[0] == [[1, 1], [2, 2], [2, 2], [2, 2]]
    # Twice the gradient, since the gradients of the two processes are averaged afterwards.
    assert one[1] == [[0, 2]] and two[1] == [[4, 6], [8, 10], [12, 14]]
    assert one[2] == two[2] == [2 * 5 * 2]
    assert one[3] == two[3] == [0, 1]
    assert (one[4], two[4]) == ((2, 0), (2, 1))


def test_vectors_of_different_widths_in_one_exchange(in_two_processes):
    """As heads on frozen towers and their teacher, or the other way round."""

    def work(number):
        narrow, wide = torch.full((1 + number, 2), float(number)), torch.full((1 + number, 5), number + 10.0)
        return [[part.tolist() for part in gather_many(parts)] for parts in ((narrow, wide), (wide, narrow))]

    narrow, wide = [[0.0] * 2, *[[1.0] * 2] * 2], [[10.0] * 5, *[[11.0] * 5] * 2]
    for given in in_two_processes(work):
        assert given == [[narrow, wide], [wide, narrow]]


def test_running_statistics_become_their_mean(in_two_processes):
    def work(number):
        tower = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).train()
        frozen, moving = tower[2].eval(), tower[0]
        moving.running_mean += torch.tensor([1.0, 2.0]) * (number + 1)
        moving.running_var += number
        frozen.running_mean += number
        average_statistics(tower)
        return moving.running_mean.tolist(), moving.running_var.tolist(), frozen.running_mean.tolist()

    one, two = in_two_processes(work)
    assert one[:2] == two[:2] == ([1.5, 3.0], [1.5, 1.5])
    assert one[2] == [0, 0, 0] and two[2] == [1, 1, 1]


def test_flops_takes_the_mean_over_both(in_two_processes):
    vectors = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    one, two = in_two_processes(lambda number: float(flops(vectors[:2] if number == 0 else vectors[2:])))
    assert one == two == pytest.approx(float(flops(vectors)))


@pytest.mark.parametrize("micro_rows", [6, 1])
@pytest.mark.parametrize("first", [3, 4], ids=["equal", "a_sample_was_skipped"])
@pytest.mark.parametrize("phase", [Phase1Module, Phase2Module])
@pytest.mark.parametrize("keys", [{}, {"train_top_k": [4]}, WORDS], ids=["plain", "cuts", "words"])
def test_loss_gradient_and_queues_are_those_of_one_process(
    phase, keys, first, micro_rows, make_config, make_batch, livelier, in_two_processes, every_loss_weighed
):
    mode = "both" if phase is Phase1Module else "con"
    config = make_config(
        training_mode=mode, per_gpu_batchsize=micro_rows, queue_size=12, loss_names=every_loss_weighed, **keys
    )
    batch = make_batch(ids=[1, 1, 2, 3, 2, 1])

    def build():
        torch.manual_seed(0)
        module = phase(config, livelier(build_model(LexLIP, config))).train()
        module.trainer = SimpleNamespace(global_step=0)
        module.sparsity.begin(10)
        if phase is Phase2Module:
            livelier(module.twin.module, seed=1)
            module.after_step(*first_step(module))
        return module

    def first_step(module):
        """A first batch and its keys, the same on every process: its parts are gathered to the whole."""
        other = make_batch(seed=5, ids=[1, 8, 9, 10, 11, 12])
        part = slice(3 * rank(), 3 * rank() + 3) if world_size() == 2 else slice(0, 6)
        return module.prepare({k: v[part] for k, v in other.items() if isinstance(v, torch.Tensor)})

    def step(module, part):
        part, context = module.prepare(part)
        losses = cached_backward(
            lambda rows, vectors_only: module._encode(rows, context, vectors_only),
            lambda vectors: module._batch_losses(vectors, part, context),
            list(split_batch(part, config.rows_at_once)),
        )
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        for gradient in gradients.values():  # as DistributedDataParallel does
            gradient.copy_(sum_over_ranks(gradient) / world_size())
        losses = {name: float(sum_over_ranks(value.detach().clone()) / world_size()) for name, value in losses.items()}
        losses |= {f"terms_{side}": float(terms) for side, terms in module.sparsity.observed.items()}
        queues = {}
        if phase is Phase2Module:
            module.after_step(part, context)
            queues = {n: v for n, v in module.state_dict().items() if "ring" in n}
        return losses, gradients, queues

    wanted = step(build(), batch)

    def work(number):
        rows = slice(0, first) if number == 0 else slice(first, 6)
        part = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        losses, gradients, queues = step(build(), part)
        return losses, {n: g.numpy() for n, g in gradients.items()}, {n: v.numpy() for n, v in queues.items()}

    for losses, gradients, queues in in_two_processes(work):
        assert losses == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in wanted[0].items()}
        assert set(gradients) == set(wanted[1])
        for name, value in wanted[1].items():
            difference = float((torch.from_numpy(gradients[name]) - value).abs().max())
            assert difference < 1e-3 * float(value.abs().max()) + 1e-6, name
        assert set(queues) == set(wanted[2])
        for name, value in wanted[2].items():
            torch.testing.assert_close(torch.from_numpy(queues[name]), value)


def test_micro_batches_of_both_processes_are_negatives_of_later_ones(
    make_config, make_batch, livelier, in_two_processes
):
    """As in the official code: 2 micro-batches of 2 rows on one process, or of 1 row on each of two."""
    batch = make_batch(ids=[1, 8, 2, 9, 3, 7])
    order = [0, 2, 1, 3]  # rows 0 and 2 belong to the first process, which has them as rows 0 and 1

    def step(rows, size):
        config = make_config(training_mode="con", queue_size=5, batch_size=4, per_gpu_batchsize=size, **OFFICIAL)
        torch.manual_seed(0)
        module = Phase2Module(config, livelier(build_model(LexLIP, config))).train()
        module.trainer = SimpleNamespace(global_step=0)
        part, context = module.prepare({k: v[rows] for k, v in batch.items() if isinstance(v, torch.Tensor)})
        loss = module.batch_losses(module.encode(part, context)[0], part, context)["contrastive_loss"]
        loss.backward()
        gradient = module.model.text_head.decoder.bias.grad
        gradient = sum_over_ranks(gradient) / world_size()
        module.after_step(part, context)
        value = float(sum_over_ranks(loss.detach()) / world_size())
        rings = module.text_ring.keys.numpy(), module.text_ring.ids.numpy(), int(module.text_ring.position)
        return value, gradient.numpy(), *rings

    wanted = step(order, 2)
    for value, gradient, keys, ids, position in in_two_processes(lambda number: step(order[number::2], 1)):
        assert value == pytest.approx(wanted[0], rel=1e-4) and position == wanted[4] == 4
        for found, other in ((gradient, wanted[1]), (keys, wanted[2])):
            assert abs(found - other).max() < 1e-5
        assert list(ids) == list(wanted[3]) == [*(int(i) for i in batch["image_id"][order]), -1]


def test_recall_of_both_processes_rows_without_the_doubled(in_two_processes):
    dense = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([4, 4, 5, 5, 6, 6])
    rows = {0: [0, 1, 2, 3], 1: [3, 4, 5]}  # row 3 twice, as a padding sampler makes it

    def work(number):
        part = rows[number]
        return recall.SparseVectors.from_dense(dense[part], ids[part], torch.tensor(part)).gathered()

    for gathered in in_two_processes(work):
        assert gathered.order.tolist() == list(range(6)) and gathered.ids.tolist() == ids.tolist()
        assert torch.equal(gathered.columns().T, dense)


def test_recall_is_shared_out_among_the_processes(in_two_processes, monkeypatch):
    monkeypatch.setattr(recall, "BLOCK_NUMBERS", 40)  # two pictures at a time
    g = torch.Generator().manual_seed(0)

    def made(rows):
        dense = torch.rand(rows, 20, generator=g) * (torch.rand(rows, 20, generator=g) < 0.2)
        return recall.SparseVectors.from_dense(dense, torch.arange(rows) % 12, torch.arange(rows))

    images, texts = made(12), made(30)
    wanted = [ranks.tolist() for ranks in recall.best_ranks(texts, images)]
    assert len(set(wanted[0])) > 3

    def work(number):
        blocks, original = set(), recall.SparseVectors.columns
        recall.SparseVectors.columns = lambda part: blocks.add(tuple(part.order)) or original(part)
        return [ranks.tolist() for ranks in recall.best_ranks(texts, images)], blocks

    results = in_two_processes(work)
    assert [ranks for ranks, _ in results] == [wanted, wanted]
    assert [sorted(blocks) for _, blocks in results] == [[(0, 1), (4, 5), (8, 9)], [(2, 3), (6, 7), (10, 11)]]
