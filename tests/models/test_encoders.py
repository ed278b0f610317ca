"""The towers: timm's own numbers at the trained size, other sizes, convolutional towers, weights from files."""

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import BertConfig

from lexlip.errors import ConfigError
from lexlip.models.encoders import BertStack, ImageEncoder, TextEncoder
from lexlip.models.positions import resample_relative_table

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
BEIT = ("beit_base_patch16_224", {**SMALL, "init_values": 0.5})
VIT = ("vit_tiny_patch16_224", SMALL)


def images(size, batch=2, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def timm_model(name, kwargs, size, livelier, **head):
    return livelier(timm.create_model(name, img_size=size, **kwargs, **head)).eval()


@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
def test_trained_size_gives_timms_own_features(name, kwargs, livelier):
    theirs = timm_model(name, kwargs, 32, livelier, num_classes=0, global_pool="")
    ours = ImageEncoder(name, 32, kwargs, norm_eps=theirs.norm.eps).eval()
    state = {f"backbone.{key}": value for key, value in theirs.state_dict().items() if not key.startswith("norm.")}
    state |= {f"norm.{key}": value for key, value in theirs.norm.state_dict().items()}
    ours.load_state_dict(state)
    assert isinstance(ours.backbone.norm, torch.nn.Identity)  # normalised once
    torch.testing.assert_close(ours(images(32)), theirs.forward_features(images(32)))
    assert (ours.width, ours.patch) == (16, 8)
    assert ours(images(32)).shape == (2, 17, 16)  # CLS and 4 x 4 patches


@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
@pytest.mark.parametrize("size", [16, 48])
def test_other_sizes(name, kwargs, size, livelier):
    tower = livelier(ImageEncoder(name, 32, kwargs)).eval()
    states = tower(images(size))
    assert states.shape == (2, (size // 8) ** 2 + 1, 16)
    assert not torch.allclose(states[0], states[1], atol=1e-2)  # other images, other states
    assert torch.equal(tower(images(32)), tower(images(32)))  # and the trained size still works


def test_beit_at_another_size_is_a_beit_built_for_it(livelier):
    """With the resampled tables put into a timm model of that size, features agree."""
    name, kwargs = BEIT
    tower = livelier(ImageEncoder(name, 32, kwargs, norm_eps=1e-6)).eval()
    built = ImageEncoder(name, 48, kwargs, norm_eps=1e-6).eval()
    state = tower.state_dict()
    for key in state:
        if key.endswith("relative_position_bias_table"):
            state[key] = resample_relative_table(state[key], (4, 4), (6, 6))
    built.load_state_dict(state)
    torch.testing.assert_close(tower(images(48)), built(images(48)))


def test_both_sizes_train_the_same_table(livelier):
    name, kwargs = BEIT
    tower = livelier(ImageEncoder(name, 32, kwargs))
    for size in (32, 16):
        tower.zero_grad()
        tower(images(size)).square().sum().backward()
        for block in tower.backbone.blocks:
            assert block.attn.relative_position_bias_table.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
def test_gradient_checkpointing_changes_no_gradient(name, kwargs, livelier):
    """Also with images of another size encoded between forward and backward."""
    tower, gradients = livelier(ImageEncoder(name, 32, kwargs)), []
    for enable in (False, True):
        if enable:
            tower.backbone.set_grad_checkpointing(True)
        tower.zero_grad()
        loss = tower(images(16)).square().sum()
        tower(images(32))
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in tower.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_two_sizes_in_one_backward(livelier):
    """The biases of both sizes belong to one table."""
    tower = livelier(ImageEncoder(*BEIT[:1], 32, BEIT[1]))
    table, grads = tower.backbone.blocks[0].attn.relative_position_bias_table, []
    for sizes in ((32,), (16,), (32, 16)):
        tower.zero_grad()
        sum(tower(images(size)).square().sum() for size in sizes).backward()
        grads.append(table.grad.clone())
    torch.testing.assert_close(grads[0] + grads[1], grads[2])


@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
def test_patches_come_token_by_token_without_a_copy(name, kwargs):
    tower, seen = ImageEncoder(name, 32, kwargs), []
    tower.backbone.patch_embed.proj.register_forward_hook(lambda module, given, out: seen.append(out))
    tower(images(32))
    assert seen[0].shape == (2, 16, 4, 4)
    assert seen[0].permute(0, 2, 3, 1).is_contiguous()


def calls_of_attention(monkeypatch):
    """The masks that scaled-dot-product attention is called with."""
    masks, original = [], F.scaled_dot_product_attention

    def counted(*given, attn_mask=None, **others):
        masks.append(attn_mask)
        return original(*given, attn_mask=attn_mask, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return masks


@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
@pytest.mark.parametrize("frozen", [False, True])
def test_images_go_through_fused_attention(name, kwargs, frozen, monkeypatch):
    """With the bias as its mask, gathered once for all layers, whether it is trained or not."""
    masks, gathered = calls_of_attention(monkeypatch), []
    original = F.embedding
    monkeypatch.setattr(F, "embedding", lambda *given: gathered.append(given) or original(*given))
    tower = ImageEncoder(name, 32, kwargs).requires_grad_(not frozen)
    with torch.autocast("cpu", torch.bfloat16):
        tower(images(16))
    beit = name.startswith("beit")
    assert len(masks) == 2 and len(gathered) == beit
    assert all((mask is not None) == beit for mask in masks)
    if beit:
        assert [(mask.shape, mask.dtype) for mask in masks] == [((1, 2, 5, 5), torch.bfloat16)] * 2
    monkeypatch.undo()
    assert torch.equal(tower(images(16)), tower(images(16)))


def test_captions_and_decoder_go_through_fused_attention(monkeypatch):
    masks = calls_of_attention(monkeypatch)
    tower, stack = TextEncoder(small_bert()), BertStack(small_bert(), layers=1)
    ids, mask = torch.tensor([[2, 7, 8, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        stack(tower(ids, mask), mask)
    assert len(masks) == 3
    assert all(mask.dtype == torch.bfloat16 and mask.shape[-1] == 5 for mask in masks)


def test_captions_give_what_the_library_gives():
    torch.manual_seed(0)
    tower = TextEncoder(small_bert()).eval()
    ids, mask = torch.tensor([[2, 7, 8, 3, 0, 0], [2, 9, 4, 4, 5, 3]]), torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    theirs = tower.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(tower(ids, mask)[0, :4], theirs[0, :4])
    torch.testing.assert_close(tower(ids, mask)[1], theirs[1])


@pytest.mark.parametrize("enable", [False, True])
def test_gradient_checkpointing_of_the_text_tower_changes_no_gradient(enable):
    torch.manual_seed(0)
    tower = TextEncoder(small_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    ids, mask = torch.tensor([[2, 7, 8, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    run, grads = [], []
    tower.bert.encoder.layer[0].attention.register_forward_hook(lambda *given: run.append(1))
    for checkpointing in (False, enable):
        if checkpointing:
            tower.bert.gradient_checkpointing_enable()
        tower.zero_grad()
        tower(ids, mask).square().sum().backward()
        grads.append(tower.word_embeddings.grad.clone())
    torch.testing.assert_close(*grads)
    assert len(run) == 2 + enable  # encoded a second time


@pytest.mark.parametrize("autocast", [False, True])
def test_towers_compile_without_a_break(autocast, livelier, fresh_compiler):
    torch.manual_seed(0)
    image, text = livelier(ImageEncoder(*BEIT[:1], 32, BEIT[1])), livelier(TextEncoder(small_bert()).eval())
    ids, mask = torch.tensor([[2, 7, 8, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    given = [(image, (images(32),)), (image, (images(16),)), (text, (ids, mask))]
    for tower, inputs in given:
        results = []
        for run in (tower, torch.compile(tower, backend="aot_eager", fullgraph=True)):
            tower.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                states = run(*inputs)
            states.float().square().sum().backward()
            results.append([states.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)])
        for one, two in zip(*results, strict=True):  # 16 bits are rounded at other places once compiled
            assert (one - two).norm() <= (0.03 if autocast else 1e-5) * one.norm()


def test_a_convolutional_tower_gives_its_map():
    tower = ImageEncoder("resnet10t", 32, {"layers": [1, 1, 1, 1]}).eval()
    backbone = tower.backbone
    with torch.no_grad():
        features = backbone.forward_features(images(64))
        states = tower(images(64))
    assert tower.patch is None
    assert features.shape == (2, tower.width, 2, 2)
    wanted = torch.stack([features[:, :, y, x] for y in range(2) for x in range(2)], dim=1)
    torch.testing.assert_close(states, torch.nn.functional.layer_norm(wanted, (tower.width,), eps=1e-12))


def test_every_norm_has_the_wanted_eps():
    tower = ImageEncoder(*VIT[:1], 32, SMALL, norm_eps=0.25)
    assert {module.eps for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)} == {0.25}


# --- weights from a file ---


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize(("name", "kwargs"), [BEIT, VIT], ids=["beit", "vit"])
def test_an_ordinary_timm_file_loads(name, kwargs, size, tmp_path, livelier):
    """As timm saves a classifier: with head, and for BEIT with fc_norm in place of norm."""
    theirs = timm_model(name, kwargs, 32, livelier)
    torch.save(theirs.state_dict(), tmp_path / "tower.pth")
    tower = ImageEncoder(name, size, kwargs, pretrained=str(tmp_path / "tower.pth"), norm_eps=1e-6).eval()
    loaded = {key.removeprefix("backbone."): value for key, value in tower.state_dict().items()}
    positions = ("pos_embed", "relative_position_bias_table")
    for key, value in theirs.state_dict().items():
        if key.startswith(("head.", "fc_norm.", "norm.")) or (size != 32 and key.endswith(positions)):
            continue
        assert torch.equal(loaded[key], value), key
    if size == 32 and name.startswith("vit"):
        torch.testing.assert_close(tower(images(32)), theirs.forward_features(images(32)))
    if size == 48:
        assert tower(images(48)).shape == (2, 37, 16)


def test_safetensors_files_load_too(tmp_path, livelier):
    from safetensors.torch import save_file

    theirs = timm_model(*VIT, 32, livelier)
    save_file(theirs.state_dict(), tmp_path / "tower.safetensors")
    tower = ImageEncoder(VIT[0], 32, VIT[1], pretrained=str(tmp_path / "tower.safetensors"))
    assert torch.equal(tower.backbone.cls_token, theirs.cls_token)


def test_a_convolutional_file_loads(tmp_path, livelier):
    theirs = livelier(timm.create_model("resnet10t"))
    torch.save(theirs.state_dict(), tmp_path / "tower.pth")
    tower = ImageEncoder("resnet10t", 32, pretrained=str(tmp_path / "tower.pth"))
    assert torch.equal(tower.backbone.conv1[0].weight, theirs.conv1[0].weight)


def weights_files(folder, livelier):
    good = timm_model(*VIT, 32, livelier).state_dict()
    yield "half of its blocks", {key: value for key, value in good.items() if "blocks.1" not in key}
    yield "another model", {"a": torch.zeros(2)}
    yield "another width", timm.create_model(VIT[0], img_size=32, **{**SMALL, "embed_dim": 24}).state_dict()


@pytest.mark.parametrize("number", range(3), ids=["half", "foreign", "width"])
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, livelier, number):
    what, state = list(weights_files(tmp_path, livelier))[number]
    torch.save(state, tmp_path / "tower.pth")
    with pytest.raises(ConfigError, match="tower.pth"):
        ImageEncoder(VIT[0], 32, VIT[1], pretrained=str(tmp_path / "tower.pth"))
        pytest.fail(f"a file with {what} was accepted")


def test_a_file_that_is_no_weights_file_is_refused_by_name(tmp_path):
    (tmp_path / "tower.pth").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="tower.pth"):
        ImageEncoder(VIT[0], 32, VIT[1], pretrained=str(tmp_path / "tower.pth"))


def test_an_absent_file_and_an_unknown_argument_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.pth"):
        ImageEncoder(VIT[0], 32, VIT[1], pretrained=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigError, match="number_of_wings"):
        ImageEncoder(VIT[0], 32, {"number_of_wings": 2})


def test_an_unknown_tower_is_refused_by_name():
    with pytest.raises(ConfigError, match="beit_basse"):
        ImageEncoder("beit_basse", 32)


# --- text ---


def small_bert(**changes):
    shape = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(**shape, intermediate_size=16, max_position_embeddings=10, **changes)


def test_padding_does_not_reach_the_words():
    torch.manual_seed(0)
    tower = TextEncoder(small_bert()).eval()
    ids, mask = torch.tensor([[2, 7, 8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(tower(ids, mask)[:, :4], tower(ids[:, :4], mask[:, :4]))
    assert tower(ids, mask).shape == (1, 6, 8)
    assert tower.word_embeddings.shape == (30, 8)


def test_decoder_stack_ignores_padding_and_has_its_own_depth():
    torch.manual_seed(0)
    stack = BertStack(small_bert(), layers=3).eval()
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    out = stack(states, mask)
    torch.testing.assert_close(out[:1, :3], stack(states[:1, :3], mask[:1, :3]))
    torch.testing.assert_close(out[1:], stack(states[1:], mask[1:]))
    assert len(stack.encoder.layer) == 3


def test_text_and_stack_are_one_bert():
    """The tower's layers over its own embeddings are the tower, so a stack of them must be too."""
    torch.manual_seed(0)
    tower = TextEncoder(small_bert()).eval()
    stack = BertStack(small_bert(), layers=2).eval()
    stack.encoder.load_state_dict(tower.bert.encoder.state_dict())
    ids, mask = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    torch.testing.assert_close(stack(tower.embed(ids), mask), tower(ids, mask))
