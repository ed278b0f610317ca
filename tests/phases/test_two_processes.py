"""The real command in two CPU processes, as two nodes start it, against one process. Some ten seconds each."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from Phase2.module import Phase2Module

pytest.importorskip("sacred")
ROOT = Path(__file__).resolve().parents[2]
NAMED = ["task_contrastive_train", "text_bert"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]


def two_processes(keys, log):
    """Starts `Phase2/run.py with ...` twice, as ranks 0 and 1; fails if they do not end within a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    words = [sys.executable, str(ROOT / "Phase2" / "run.py"), "with", *NAMED]
    words += [f"{key}={value!r}" for key, value in keys.items()]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
            "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(rank),
            "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with open(log / f"rank{rank}.txt", "w") as out:
            processes.append(subprocess.Popen(words, env=environment, cwd=log, stdout=out, stderr=out))
    try:
        codes = [process.wait(60) for process in processes]
    except subprocess.TimeoutExpired:
        codes = ["waits for the other"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    output = "\n".join((log / f"rank{rank}.txt").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], output


@pytest.mark.parametrize("broken", [[], [0, 3]], ids=["whole", "with_broken_pictures"])
def test_two_processes_are_one(start, tiny_data, tmp_path, broken):
    """Without broken pictures the same batches, passes and losses, so the same weights; with them it must end."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data["root"] / "tiny", root / "tiny")
    for number in broken:
        (root / "tiny" / f"train_{number}.png").write_bytes(b"broken")
    how = {"max_steps": 4, "drop_rate": 0.0, "warmup_steps": 0, "learning_rate": 1e-2, "data_root": str(root)}
    how["max_bad_share"] = 0.3
    one = start(Phase2Module, NAMED, version="one", **how)
    keys = {**one.keys, "version": "two", "num_nodes": 2, "per_gpu_batchsize": 1}
    two_processes({key: value for key, value in keys.items() if not key.startswith("__")}, tmp_path)
    results = []
    for version in ("one", "two"):
        file = one.folder.with_name(version) / "checkpoints" / "last.ckpt"
        results.append(torch.load(file, weights_only=True, map_location="cpu"))
    assert [result["global_step"] for result in results] == [4, 4]
    state, other = (result["state_dict"] for result in results)
    assert set(state) == set(other)
    for name, value in state.items():
        if "ring" in name and broken:
            assert value.shape == other[name].shape
        else:
            # A near tie of two tokens may go the other way, hence no tighter; Adam makes steps of 1e-2.
            assert float((value.double() - other[name].double()).abs().max()) < 2e-3, name
