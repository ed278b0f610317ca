"""The released code's numbers, reproduced: its weights under our names, its inputs, its losses and gradients."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lexlip.models.config import ModelConfig
from lexlip.models.lexicon_head import lexicon_bottleneck
from lexlip.models.lexlip import LexLIP
from lexlip.train.config import Config, base
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {1: Phase1Module, 2: Phase2Module}
TEXT = {
    "vocab_size": 600, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "init_values": 0.1}

BLOCK = {  # of the image tower
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
HEAD = {
    "transform.dense.": "dense.",
    "transform.LayerNorm.": "norm.",
    "decoder.": "decoder.",
    "bias": "decoder.bias",  # the decoder's own bias under a second name
}
# Entries of the released code that have no counterpart here: constants, unused copies of the decoder, and the
# image tower's query, key and value matrices, which are one matrix here.
UNUSED = re.compile(r"position_ids$|relative_position_index$|^moco_.*decoder_heads|attention\.attention\.\w+\.weight$")


def our_name(name):
    """A released parameter's name -> ours, or None where there is none by itself."""
    prefix = "model."
    if name.startswith("moco_"):
        prefix, name = "twin.module.", name[5:]
    stem, _, last = name.rpartition(".")
    if name.endswith("embeddings.cls_token"):
        return prefix + "image_encoder.backbone.cls_token"
    if stem.endswith("patch_embeddings.projection"):
        return f"{prefix}image_encoder.backbone.patch_embed.proj.{last}"
    if name.startswith("image_transformer.layernorm."):
        return f"{prefix}image_encoder.norm.{last}"
    if match := re.match(r"image_transformer\.beit\.encoder\.layer\.(\d+)\.(.*)", name):
        number, rest = match.groups()
        for theirs, ours in BLOCK.items():
            if rest == theirs or rest.rsplit(".", 1)[0] == theirs:
                ending = "" if rest == theirs else "." + last
                return f"{prefix}image_encoder.backbone.blocks.{number}.{ours}{ending}"
        return None
    if name.startswith("text_transformer.bert.") and not UNUSED.search(name):
        return prefix + "text_encoder.bert." + name.removeprefix("text_transformer.bert.")
    if name.startswith("text_transformer.decoder_heads.") and prefix == "model.":
        return "decoder.layers.encoder.layer." + name.removeprefix("text_transformer.decoder_heads.")
    for start, head in (("text_transformer.cls", "text_head."), ("mlm_head_for_image", "image_head.")):
        rest = name.removeprefix(start + ".predictions.")
        for theirs, ours in HEAD.items():
            if rest != name and rest.startswith(theirs):
                return prefix + head + ours + rest.removeprefix(theirs)
    return None


def our_state(theirs):
    """A released state dict -> ours, and the names that were left over."""
    state, left = {}, []
    for name, value in theirs.items():
        ours = our_name(name)
        if ours is not None:
            assert ours not in state or torch.equal(state[ours], value)  # two names of one tensor
            state[ours] = value
        elif name.endswith("attention.attention.query.weight"):
            parts = [theirs[name.replace("query", part)] for part in ("query", "key", "value")]
            qkv = our_name(name.replace("query.weight", "query.bias")).replace("q_bias", "qkv.weight")
            state[qkv] = torch.cat(parts)
        elif name in ("image_queue", "text_queue"):
            ring = name.replace("queue", "ring.")
            state[ring + "keys"] = value.T.contiguous()
            state[ring + "ids"] = torch.full((value.shape[1],), -1)  # of no image of the batch
            state[ring + "filled"] = torch.tensor(value.shape[1])
        elif name in ("image_queue_ptr", "text_queue_ptr"):
            state[name.replace("queue_ptr", "ring.position")] = value.reshape(())
        elif not UNUSED.search(name):
            left.append(name)
    return state, left


@pytest.fixture(scope="module", params=[1, 2], ids=["phase1", "phase2"])
def golden(request, shared):
    """Module with the released weights, its batch, and the released code's numbers, after one step."""
    number = request.param
    arrays = np.load(shared("golden", f"Phase{number}_tiny_11.npz"))
    theirs = torch.load(shared("golden", f"Phase{number}_tiny_11.ckpt"), weights_only=True)["state_dict"]
    keys = base()
    keys.update(
        training_mode="both" if number == 1 else "con", image_size=64, hidden_size=64, input_text_embed_size=64,
        input_image_embed_size=64, vocab_size=600, queue_size=24, num_gpus=0, num_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LexLIP(ModelConfig(vit="beit_base_patch16_224", image_size=64, vit_kwargs=VIT, text=TEXT))
    module = PHASES[number](Config.checked(keys), model)
    state, left = our_state(theirs)
    result = module.load_state_dict(state, strict=False)
    names = {
        "image": "img", "text_ids": "ids", "text_mask": "mask", "encoder_ids": "e_ids", "encoder_labels": "e_lab",
        "decoder_ids": "d_ids", "decoder_labels": "d_lab",
    }  # fmt: skip
    batch = {name: torch.from_numpy(arrays[key]) for name, key in names.items()}
    batch["image_id"] = torch.arange(len(batch["image"]))
    module.train()
    losses = module.compute_losses(batch)
    sum(losses.values()).backward()
    return SimpleNamespace(
        number=number, module=module, batch=batch, arrays=arrays, theirs=theirs, losses=losses, left=left,
        missing=result.missing_keys, unexpected=result.unexpected_keys,
    )  # fmt: skip


def only(golden, number):
    if golden.number != number:
        pytest.skip(f"numbers of phase {number}")


def close(ours, theirs, tolerance):
    theirs = torch.from_numpy(theirs)
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 10 * tolerance  # else anything near zero would pass
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=tolerance)


def test_every_weight_has_its_place(golden):
    assert golden.left == []
    # Phase 2 has no decoder; the released checkpoint carries it along.
    assert [name for name in golden.unexpected if golden.number == 1 or not name.startswith("decoder.")] == []
    constants = ("position_ids", "token_type_ids", "relative_position_index", "k_bias")
    assert [name for name in golden.missing if not name.endswith(constants)] == []


def test_vectors(golden):
    batch, model = golden.batch, golden.module.model
    close(model.encode_text(batch["text_ids"], batch["text_mask"], normalize=False), golden.arrays["text_lex"], 1e-4)
    close(model.encode_image(batch["image"], normalize=False), golden.arrays["image_lex"], 1e-4)


def test_bottlenecks(golden):
    only(golden, 1)
    batch, model = golden.batch, golden.module.model
    text = model.text_head.max_logits(model.text_encoder(batch["encoder_ids"], batch["text_mask"]), batch["text_mask"])
    image = model.image_head.max_logits(model.image_encoder(batch["image"]))
    for name, pooled in (("text", text), ("image", image)):
        bag = lexicon_bottleneck(pooled, model.text_encoder.word_embeddings)
        theirs = golden.arrays[f"{name}_bottleneck"]
        torch.testing.assert_close(bag.detach(), torch.from_numpy(theirs), rtol=0, atol=1e-4)
        assert (bag - bag[0]).abs().max() > 0


def test_losses(golden):
    losses = {name: float(value.detach()) for name, value in golden.losses.items()}
    losses["contrastive_loss"] += losses.pop("flops_loss")  # the released code logs them as one
    theirs = {name: float(golden.arrays[name]) for name in golden.arrays.files if name.endswith("_loss")}
    assert set(losses) == set(theirs)
    for name, value in theirs.items():
        assert losses[name] == pytest.approx(value, abs=1e-4), name


def test_gradient_norms_of_every_parameter(golden):
    theirs = json.loads(str(golden.arrays["gradnorms"]))
    ours = {name: p.grad for name, p in golden.module.named_parameters() if p.grad is not None}
    compared = set()
    for name, norm in theirs.items():
        target = our_name(name)
        match = re.match(r"(.*attention\.attention\.)(query|key|value)\.weight$", name)
        if target is None and match and name.startswith("image_transformer"):
            qkv = our_name(match.group(1) + "query.bias").replace("q_bias", "qkv.weight")
            part = ours[qkv].chunk(3)[("query", "key", "value").index(match.group(2))]
            compared.add(qkv)
        elif target in ours:
            part = ours[target]
            compared.add(target)
        else:
            assert not norm or UNUSED.search(name), name
            continue
        assert float(part.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    assert set(ours) == compared
    assert len(compared) > 80


def test_keys(golden):
    only(golden, 2)
    _, keys = golden.module.prepare(golden.batch)
    close(keys.text, golden.arrays["text_keys"], 1e-5)
    close(keys.image, golden.arrays["image_keys"], 1e-5)


def test_momentum_step_and_queues(golden):
    only(golden, 2)
    module, arrays = golden.module, golden.arrays
    # Theirs hold a decoder too, which Phase 2 never uses, and count the heads' bias twice: taken from the file.
    more = re.compile(r"^moco_.*(decoder_heads|predictions\.bias$)")
    heads = {name: value for name, value in golden.theirs.items() if more.match(name)}
    steps = [0.01 * (golden.theirs[name[5:]] - value) for name, value in heads.items()]
    after = [value + step for value, step in zip(heads.values(), steps, strict=True)]

    def norm(*groups):
        return float(torch.cat([value.detach().double().flatten() for group in groups for value in group]).norm())

    ours = dict(module.momentum_encoder.named_parameters())
    before = {name: value.detach().clone() for name, value in ours.items()}
    module.after_step(*module.prepare(golden.batch))
    moved = [ours[name] - value for name, value in before.items()]
    assert norm(before.values(), heads.values()) == pytest.approx(float(arrays["moco_before_l2"]), rel=1e-6)
    assert norm(ours.values(), after) == pytest.approx(float(arrays["moco_after_l2"]), rel=1e-6)
    assert norm(moved, steps) == pytest.approx(float(arrays["moco_step_l2"]), rel=1e-4)
    assert norm(moved) > 0.5 * norm(moved, steps)
    for side, queue in module.queues.items():
        close(queue.keys[18:24], arrays[f"{side}_keys"], 1e-5)
        assert int(queue.position) == arrays["ptr"][0] == arrays["ptr"][1]
