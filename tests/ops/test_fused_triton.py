"""The GPU kernels: on a GPU as they are, without one in Triton's interpreter, which a child process turns on.

The interpreter must be chosen before Triton is imported, so the first test runs this file again in a child.
"""

import os
import subprocess
import sys

import pytest
import torch

from lexlip.ops import fused
from lexlip.ops.max_logits import max_logits

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
BLOCKS = {"BLOCK_V": 16, "BLOCK_T": 16, "BLOCK_D": 16, "GROUP": 2}
# (B, L, D, V): L and V multiples of no tile; one token; one of everything; several samples and less than one in a
# tile; D that the copy engine cannot fetch.
SHAPES = [(3, 7, 24, 50), (5, 1, 16, 7), (1, 1, 1, 1), (9, 3, 8, 33), (2, 37, 20, 17)]
inside = pytest.mark.skipif(not (INTERPRETED or GPU), reason="the child process runs it")
DEVICE = pytest.param("cuda", marks=pytest.mark.gpu) if GPU else "cpu"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or GPU, reason="this is the child process, or there is no need of one")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout[-5000:] + child.stderr[-2000:]
    assert " passed" in child.stdout and "failed" not in child.stdout


@pytest.fixture(params=[DEVICE])
def device(request, monkeypatch):
    """The operator with the kernels behind it; tiles as tuned on a GPU, small in the interpreter."""
    if INTERPRETED:
        import triton

        from lexlip.ops import fused_triton

        monkeypatch.setattr(fused, "_in_triton", lambda hidden: True)
        config = triton.Config(BLOCKS, pre_hook=fused_triton._shape_descriptors)
        small = triton.autotune([config], key=[])(fused_triton._best_kernel)
        monkeypatch.setattr(fused_triton, "_tuned_best_kernel", small)
        _teach_interpreter_bfloat16(monkeypatch)
    return request.param


def _teach_interpreter_bfloat16(monkeypatch):
    """It keeps bfloat16 as bit patterns and would multiply those."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def dot(self, a, b, *others):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def inputs(batch, length, width, vocab, dtype, padded, device, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, width, generator=g).to(dtype)
    weight, bias = torch.randn(vocab, width, generator=g).to(dtype).float(), torch.randn(vocab, generator=g)
    mask = None
    if padded:
        mask = (torch.rand(batch, length, generator=g) < 0.6).long()
        mask[0, 1:] = 0  # all padding but one token
        mask[0, 0] = 1
        mask = mask.to(device)
    return [tensor.to(device).requires_grad_() for tensor in (hidden, weight, bias)], mask


def reference(hidden, weight, bias, mask, saturated):
    logits = hidden @ weight.T + bias
    if mask is not None:
        logits = logits.masked_fill(mask[:, :, None] == 0, -1e6)
    best = logits.max(1).values
    return torch.log1p(torch.relu(best)) if saturated else best


@inside
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_float64(device, shape, dtype, padded, saturated):
    tensors, mask = inputs(*shape, dtype, padded, device)
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(shape[0], shape[3], generator=g) * (torch.rand(shape[0], shape[3], generator=g) < 0.5)
    upstream = upstream.to(device)
    value = max_logits(*tensors, mask, saturated)
    grads = torch.autograd.grad((value * upstream).sum(), tensors)
    assert [value.dtype, *(grad.dtype for grad in grads)] == [torch.float32, dtype, torch.float32, torch.float32]

    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    wanted = reference(*doubles, mask, saturated)
    wanted_grads = torch.autograd.grad((wanted * upstream).sum(), doubles)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)
    # The gradient of the states comes in their 16 bits.
    torch.testing.assert_close(grads[0].double(), wanted_grads[0], rtol=torch.finfo(dtype).eps, atol=1e-5)
    for grad, want in zip(grads[1:], wanted_grads[1:], strict=True):
        torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=1e-5)


@inside
@pytest.mark.parametrize("length", [3, 40])
def test_a_tie_goes_to_the_lowest_token(device, length):
    """Within a tile and between two, zeros of both signs included."""
    hidden = torch.zeros(2, length, 8, dtype=torch.float16, device=device)
    hidden[1] = 1
    hidden[0, 0] = -0.0
    weight, bias = torch.ones(5, 8, device=device), torch.zeros(5, device=device)
    _, token = fused.pooled(hidden, weight, bias, None, False, True)
    assert token.tolist() == [[0] * 5] * 2


@inside
@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_where_padding_is_largest_there_is_no_token(device, kind):
    hidden = torch.full((2, 3, 8), 1.0, dtype=torch.bfloat16, device=device)
    weight, bias = torch.full((4, 8), -1e6, device=device), torch.zeros(4, device=device)
    mask = torch.tensor([[0, 0, 0], [1, 0, 0]], device=device).to(kind)
    value, token = fused.pooled(hidden, weight, bias, mask, False, True)
    assert value.tolist() == [[-1e6] * 4] * 2
    assert token[0].tolist() == [fused.NO_TOKEN] * 4
    hidden.requires_grad_()
    max_logits(hidden, weight, bias, mask).sum().backward()
    assert not hidden.grad.any()


@inside
def test_without_tokens_the_values_are_the_same(device):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 8, generator=g).to(device, torch.bfloat16)
    weight, bias = torch.randn(7, 8, generator=g).to(device), torch.randn(7, generator=g).to(device)
    wanted, _ = fused.pooled(hidden, weight, bias, None, True, True)
    value, token = fused.pooled(hidden, weight, bias, None, True, False)
    assert torch.equal(value, wanted) and token.numel() == 0


@inside
@pytest.mark.parametrize("saturated", [False, True])
def test_infinity_wins_and_not_a_number_is_not_hidden(device, saturated):
    """Over 20 tokens, so that a tile without the number meets one with it."""
    hidden = torch.zeros(3, 20, 1, dtype=torch.bfloat16, device=device)
    hidden[:, 1], hidden[0, 18], hidden[1, 5], hidden[2, 19] = 3, float("inf"), float("nan"), float("-inf")
    weight, bias = torch.tensor([[1.0], [-1.0]], device=device), torch.zeros(2, device=device)
    value = max_logits(hidden, weight, bias, None, saturated)
    wanted = reference(hidden.double(), weight.double(), bias.double(), None, saturated)
    torch.testing.assert_close(value.double(), wanted, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert value[0, 0] == float("inf") and value[1].isnan().all() and value[2, 1] == float("inf")


@inside
def test_small_weights_keep_their_digits(device):
    """log(1 + m) for small m, where 1 + m has lost them."""
    steps = torch.tensor([1e-7, 3e-5, 1e-3, 0.5, 2.0, 60.0, 1e4], device=device)
    hidden = torch.ones(1, 1, 8, dtype=torch.float16, device=device)
    value = max_logits(hidden, torch.zeros(7, 8, device=device), steps, saturated=True)
    torch.testing.assert_close(value[0], torch.log1p(steps), rtol=1e-5, atol=0)


@inside
def test_a_loss_that_is_no_number_reaches_the_weights(device):
    tensors, _ = inputs(2, 3, 8, 5, torch.bfloat16, False, device)
    value = max_logits(*tensors)
    grads = torch.autograd.grad((value * torch.tensor([[float("nan")], [1.0]], device=device)).sum(), tensors)
    assert grads[0][0].isnan().any() and not grads[0][1].isnan().any()
    assert grads[1].isnan().all() and grads[2].isnan().all()


@inside
def test_equal_inputs_give_equal_gradients(device):
    tensors, mask = inputs(4, 9, 16, 70, torch.bfloat16, True, device)
    results = [torch.autograd.grad(max_logits(*tensors, mask).square().sum(), tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@inside
def test_every_kernel_is_launched_on_the_tensors_device(device, monkeypatch):
    """Triton itself takes the current one; that is another where a process holds several."""
    from lexlip.ops import fused_triton

    under, launched = [], {}

    class DeviceOf(torch.cuda.device_of):
        def __init__(self, tensor):
            super().__init__(tensor)
            self.tensor = tensor

        def __enter__(self):
            under.append(self.tensor.device)
            super().__enter__()

        def __exit__(self, *error):
            under.pop()
            super().__exit__(*error)

    class Launches:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(fused_triton, name)

        def __getitem__(self, grid):
            launched[self.name] = list(under)
            return self.kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    names = ["_tuned_best_kernel", "_unpack_kernel", "_weight_kernel", "_state_kernel"]
    for name in names:
        monkeypatch.setattr(fused_triton, name, Launches(name))
    tensors, mask = inputs(2, 5, 8, 11, torch.float16, True, device)
    max_logits(*tensors, mask).sum().backward()
    assert launched == {name: [tensors[0].device] for name in names}


@inside
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_a_device_that_is_not_the_current_one(device):
    tensors, mask = inputs(2, 5, 8, 11, torch.float16, True, device)
    wanted = torch.autograd.grad(max_logits(*tensors, mask).sum(), tensors)
    away = [tensor.detach().to("cuda:1").requires_grad_() for tensor in tensors]
    grads = torch.autograd.grad(max_logits(*away, mask.to("cuda:1")).sum(), away)
    assert all(torch.equal(grad.cpu(), want.cpu()) for grad, want in zip(grads, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="compiling is the parent's")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_the_gpu_without_one(capability):
    """Every tile that the tuner may choose; Hopper gets its own matrix instruction and the copy engine."""
    from lexlip.ops import fused_triton as kernels

    integers = {name: "i32" for name in ("tokens", "batch", "length", "vocab")}
    floats = {"bias": "*fp32", "grad": "*fp32", "value": "*fp32", "weight": "*bf16", "hidden": "*bf16"}
    common = {**integers, **floats, "best": "*i64", "mask": "*i64", "token": "*i16", "pairs": "*i64", "starts": "*i64"}
    for config in kernels._tuned_best_kernel.configs:
        sizes = config.kwargs
        for engine in (False, True) if capability >= 90 else (False,):
            types = dict(common)
            if engine:
                types["weight"] = f"tensordesc<bf16[{sizes['BLOCK_V']},{sizes['BLOCK_D']}]>"
                types["hidden"] = f"tensordesc<bf16[{sizes['BLOCK_T']},{sizes['BLOCK_D']}]>"
            fixed = {**sizes, "WIDTH": 768, "LONG": True, "HAS_MASK": True, "DESCRIPTORS": engine}
            code = _compile(kernels._best_kernel, types, fixed, capability, config)
            assert ("wgmma" if capability >= 90 else "mma.sync") in code
            assert ("cp.async.bulk.tensor" in code) == engine
    _compile(kernels._unpack_kernel, common, {"HAS_MASK": True, "SATURATED": True, "BLOCK": 1024}, capability)
    fixed = {"WIDTH": 768, "BLOCK_V": 64, "BLOCK_D": 128, "AT_ONCE": 4}
    _compile(kernels._weight_kernel, {**common, "out": "*fp32"}, fixed, capability)
    fixed = {"WIDTH": 768, "BLOCK_N": 16, "BLOCK_D": 256}
    _compile(kernels._state_kernel, {**common, "out": "*bf16"}, fixed, capability)


def _compile(kernel, types, fixed, capability, config=None) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else types[name] for name in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names if signature[n].startswith("*")}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else {}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
