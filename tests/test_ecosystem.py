"""Every block of docs/ECOSYSTEM.md runs, in the page's order, in one folder; those of a package where it is installed.

Of two a part is replaced: mteb's data, which it would fetch, and COCO's evaluation, which evaluate/test_eccv.py runs.
"""

import io
import re
import shlex
import tarfile
from pathlib import Path

import converter as convert
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from lexlip.cli import main
from lexlip.train.config import Config, base

PAGE = (Path(__file__).parents[1] / "docs" / "ECOSYSTEM.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- needs: ([^>]*?) -->\n)?```(bash|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page's first paragraph says is there."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    from lexlip import LexLIP
    from lexlip.train.build import build_model
    from lexlip_data.convert.vocabulary import build_tokenizer

    root = tmp_path_factory.mktemp("ecosystem")
    words = build_tokenizer(tiny.write_tables(root / "made"), root / "tokenizer", vocab_size=120)
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    config = Config.checked({**base(), **tiny.MODEL, "batch_size": 4, "per_gpu_batchsize": 4, "vocab_size": words})
    torch.manual_seed(0)
    model = build_model(LexLIP, config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(root / "model_folder")
    for name in ("photos", "shards", "parquet"):
        (root / name).mkdir()
    samples = []
    for n, path in enumerate(sorted((root / "made" / "tiny").glob("*.png"))):
        data, captions = path.read_bytes(), [f"a red dot {n}", f"a green ring {n}"]
        (root / "photos" / f"{n}.png").write_bytes(data)
        samples.append({"image": data, "captions": captions, "image_id": str(n)})
    rows = [f"{text}\tphotos/{s['image_id']}.png\t{s['image_id']}" for s in samples for text in s["captions"]]
    (root / "photos.tsv").write_text("\n".join(["title\tfilepath\timage_id", *rows]))
    for shard in range(2):
        with tarfile.open(root / "shards" / f"{shard:05d}.tar", "w") as tar:
            for sample in samples[shard::2]:
                for ending, data in (("png", sample["image"]), ("txt", sample["captions"][0].encode())):
                    info = tarfile.TarInfo(f"{sample['image_id']}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(samples), root / "parquet" / "train-0.parquet")
    made = ["folder", "--table", str(root / "photos.tsv"), "--name", "t", "--split", "test", "--out", str(root / "o")]
    convert.main([*made, "--workers", "0", "--quiet"])
    (root / "o" / "t_test.arrow").rename(root / "test.arrow")
    bert = BertConfig(
        vocab_size=words, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        max_position_embeddings=40,
    )  # fmt: skip
    BertForMaskedLM(bert).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    return root


def require(needs, folder):
    """Skip without the packages; a number after a name is the lowest version."""
    for name, version in re.findall(r"([a-z_]+)(?: (\d+))?", needs):
        pytest.importorskip(name, reason=f"pip install {name}", minversion=version or None)
    if "sentence_transformers" in needs and not (folder / "splade_folder").exists():
        from sentence_transformers import SparseEncoder

        SparseEncoder(str(folder / "bert"), device="cpu").save_pretrained(str(folder / "splade_folder"))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, folder, monkeypatch):
    needs, language, block = BLOCKS[number]
    require(needs, folder)
    monkeypatch.chdir(folder)
    if needs == "mteb":
        import mteb
        from mteb.mocks.mock_tasks import MockAny2AnyRetrievalT2ITask

        monkeypatch.setattr(mteb, "get_tasks", lambda tasks, **_: [MockAny2AnyRetrievalT2ITask()])
    if language == "python":
        exec(compile(block, f"block {number}", "exec"), {})
        return
    for line in block.splitlines():
        command, *words = shlex.split(line)
        if command == "python":
            assert words[0] == "datasets/convert.py"
            assert convert.main([*words[1:], "--workers", "0", "--quiet"]) == 0, line
        elif command.startswith("LOAD_PATH="):
            assert words[:2] == ["bash", "scripts/eval_coco.sh"]
            keys = dict(word.split("=") for word in words[2:])
            assert keys.pop("eccv") == "True" and Config.checked({**base(), **keys, "eccv": True, "test_only": True})
        else:
            assert command == "lexlip" and main(words) == 0, line


def test_the_page_has_a_block_for_every_bridge():
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(headings) == 8 and len(BLOCKS) >= 8
    assert {needs for needs, _, _ in BLOCKS if needs} == {
        "sentence_transformers 6", "sentence_transformers 5", "ir_measures ranx", "mteb", "pyterrier", "eccv_caption",
    }  # fmt: skip
