"""The pooled lexicon head, forward and backward: fused against the (B, L, V) matrix.

    python benchmarks/head.py --json head.json

Rows:
- every word: random states; nearly every term's largest logit is positive and gets a gradient, as at the start of
  training, and as Phase 1's softmax bottleneck does throughout;
- 1% of the words: a bias low enough that about 300 terms an image stay positive, as in a trained model;
- captions: 40 tokens at most, padding included;
- without gradient: the momentum encoder and evaluation.

Agreement: the values and all gradients are compared with float64. The largest of 197 logits may be two that differ by
less than rounding; float64 then follows the token that the fast path chose, after checking that it is a maximum.
"""

from __future__ import annotations

import checkout
import harness
import torch
import torch.nn.functional as F
from harness import Options, Subject

from lexlip.ops import fused
from lexlip.ops.fused import PADDING_LOGIT
from lexlip.ops.max_logits import max_logits

CASES = ("every word", "1% of the words", "captions", "without gradient")


def reference(hidden, weight, bias, mask):
    """log(1 + max over L of relu(z)) as the formula reads."""
    logits = F.linear(hidden, weight, bias)  # (B, L, V)
    if mask is not None:
        logits = logits.masked_fill(mask[:, :, None] == 0, PADDING_LOGIT)
    return torch.log1p(torch.relu(logits).max(dim=1).values.float())


def inputs(case: str, options: Options) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]:
    """(hidden, weight, bias), mask, and the gradient of the result; seeded, the same for both paths."""
    sizes, g = options.more, torch.Generator().manual_seed(0)
    length = 40 if case == "captions" else sizes["length"]
    hidden = F.layer_norm(torch.randn(sizes["batch"], length, sizes["width"], generator=g), (sizes["width"],))
    weight = torch.randn(sizes["vocab"], sizes["width"], generator=g) * 0.02
    bias = torch.zeros(sizes["vocab"])
    if case == "1% of the words":
        pooled = max_logits(hidden[:2], weight, bias)
        bias -= pooled.quantile(0.99, dim=1).mean()
    mask = None
    if case == "captions":
        lengths = torch.randint(8, length + 1, (sizes["batch"],), generator=g)
        mask = (torch.arange(length)[None, :] < lengths[:, None]).long().to(options.device)
    upstream = torch.randn(sizes["batch"], sizes["vocab"], generator=g).to(options.device)
    tensors = [tensor.to(options.device) for tensor in (hidden, weight, bias)]
    tensors[0] = tensors[0].to(options.torch_dtype)
    return [tensor.requires_grad_(case != "without gradient") for tensor in tensors], mask, upstream


class Build:
    """One case."""

    def __init__(self, case: str):
        self.case = case

    def __call__(self, which: str, options: Options) -> Subject:
        tensors, mask, upstream = inputs(self.case, options)

        def run():
            with torch.autocast(options.device, options.torch_dtype, enabled=options.dtype != "float32"):
                if which == "fast":
                    value = max_logits(*tensors, mask, saturated=True)
                else:
                    value = reference(*tensors, mask)
            if not value.requires_grad:
                return [value]
            return [value.detach(), *torch.autograd.grad(value, tensors, upstream)]

        return Subject(run)


def differences(case: str, options: Options) -> dict[str, float]:
    """Largest absolute difference of the fast path's values, and relative ones of its gradients, from float64."""
    tensors, mask, upstream = inputs(case, options)
    results = Build(case)("fast", options).run()
    value, grads = results[0], results[1:]
    hidden, weight, bias = (tensor.detach() for tensor in tensors)
    compute = hidden.dtype  # 16-bit operands are the operands: float64 multiplies the same numbers
    _, token = fused.pooled(hidden, weight, bias, mask, True, True)
    weight64, bias64 = weight.to(compute).double(), bias.double()
    wanted, gap = torch.empty_like(value, dtype=torch.float64), 0.0
    dense = [torch.zeros_like(t, dtype=torch.float64) for t in (hidden, weight, bias)]
    for b in range(len(hidden)):
        logits = F.linear(hidden[b].double(), weight64, bias64)  # (L, V)
        if mask is not None:
            logits.masked_fill_(mask[b, :, None] == 0, PADDING_LOGIT)
        best, at = logits.max(0).values, token[b].long()[None, :].clamp(min=0)
        gap = max(gap, float((best - logits.gather(0, at)[0]).max()))
        wanted[b] = torch.log1p(best.relu())
        if grads:
            scale = torch.where(best > 0, upstream[b].double() / (1 + best), 0.0)
            spread = torch.zeros_like(logits).scatter_(0, at, scale[None, :])
            dense[0][b] = spread @ weight64
            dense[1] += spread.T @ hidden[b].double()
            dense[2] += scale
    worst = {"difference": float((value.double() - wanted).abs().max()), "maximum_missed_by": gap}
    if grads:
        names = ("difference_states", "difference_decoder", "difference_bias")
        for name, grad, want in zip(names, grads, dense, strict=True):
            worst[name] = float((grad.double() - want).abs().max() / want.abs().max())
    return worst


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=int, help="16, on a GPU 100")
    parser.add_argument("--length", type=int, default=197, help="tokens of an image")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=30522)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = harness.options(parser, arguments)
    options.more["batch"] = options.more["batch"] or (100 if options.cuda else 16)
    rows = []
    for case in options.more["cases"]:
        row = harness.compare(f"head, {case}", Build(case), options)
        row |= {name: options.more[name] for name in ("batch", "length", "width", "vocab")} | differences(case, options)
        worst = max(value for name, value in row.items() if name.startswith("difference"))
        row["agrees"] = max(worst, row["maximum_missed_by"]) < (1e-4 if options.dtype == "float32" else 2e-2)
        row["notes"] = [f"from float64 {worst:.0e}"]
        rows.append(row)
        harness.write(rows, options)  # a run that is cut off keeps them
    harness.report(rows, options)
    return rows


if __name__ == "__main__":
    checkout.run(main)
