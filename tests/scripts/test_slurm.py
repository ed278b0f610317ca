"""The .sbatch files with stand-ins for srun, scontrol and python: what is run where, and when a job is put back."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = 2

# Runs the command once per node and hands signals on, as srun does. `wait` again after each signal.
SRUN = f"""#!/usr/bin/env bash
echo "$*" > "$RECORD/srun"
while [[ $1 == --* ]]; do shift; done
for node in {" ".join(map(str, range(NODES)))}; do SLURM_NODEID=$node "$@" & pids+=($!); done
trap 'again=1; kill -USR1 "${{pids[@]}}"' USR1
worst=0
for pid in "${{pids[@]}}"; do
  while :; do again= status=0; wait "$pid" || status=$?; [ -n "$again" ] || break; done
  [ "$status" -le "$worst" ] || worst=$status
done
exit "$worst"
"""

SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") printf 'gpu7\\ngpu9\\n' ;;
  "show job") echo "JobId=$4 JobName=x JobState=$STATE Reason=None" ;;
  requeue*) echo "$2" > "$RECORD/requeued" ;;
esac
"""

# In place of `python -m lexlip.launch`: writes down how it was called, then does as $PLAY says.
PYTHON = """#!/usr/bin/env python3
import json, os, signal, sys, time
from pathlib import Path
record = Path(os.environ["RECORD"])
node = os.environ["NODE_RANK"]
def leave(*_):
    time.sleep(0.5)
    (record / f"saved{node}").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RUN_ID")
(record / f"node{node}.json").write_text(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names}]))
time.sleep(60) if os.environ["PLAY"] == "train" else sys.exit(int(os.environ["PLAY"]))
"""


class Job:
    """One job; `play` is what the processes do: train until asked to stop, or end with an exit status."""

    def __init__(self, folder, file, *words, play="train", state="RUNNING", **variables):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, program in (("srun", SRUN), ("scontrol", SCONTROL), ("launcher", PYTHON)):
            (folder / "bin" / name).write_text(program)
            (folder / "bin" / name).chmod(0o755)
        root = folder / "root"  # a copy, because a checkout may have a .venv, which goes before $PYTHON
        shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        # SLURM runs a copy of the script from its own folder.
        spooled = shutil.copy(ROOT / "scripts" / "slurm" / file, folder / "slurm_script")
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("NUM_GPUS", "LOG_DIR", "DATA_ROOT")},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHON": str(folder / "bin" / "launcher"),
            "RECORD": str(folder), "PLAY": play, "STATE": state,
            "SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_JOB_NODELIST": "gpu[7,9]", "SLURM_CPUS_PER_TASK": "72", **variables,
        }  # fmt: skip
        self.shell = subprocess.Popen(
            ["bash", spooled, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def nodes(self):
        """Words and variables of the launcher on each node, once all are started."""
        files = [self.folder / f"node{node}.json" for node in range(NODES)]
        deadline = time.monotonic() + 20
        while not all(file.exists() and file.stat().st_size for file in files):
            assert time.monotonic() < deadline and self.shell.poll() is None, self.shell.communicate()[0]
            time.sleep(0.05)
        return [json.loads(file.read_text()) for file in files]

    def end(self):
        """Exit status, and the job that was put back, if any."""
        out, _ = self.shell.communicate(timeout=30)
        requeued = self.folder / "requeued"
        return self.shell.returncode, requeued.read_text().strip() if requeued.exists() else None, out


KEYS = {
    "phase1.sbatch": "Phase1 task_Text_MAE_Contrastive_train batch_size=800 per_gpu_batchsize=100 max_epoch=20 "
    "image_size=224 vit_randaug precision=16 learning_rate=5e-5",
    "phase2.sbatch": "Phase2 task_contrastive_train batch_size=2880 per_gpu_batchsize=90 max_steps=40000 "
    "queue_size=11520 DR=True image_size=224 vit_randaug precision=16 learning_rate=5e-5 load_path=x.ckpt",
    "finetune.sbatch": "Phase2 task_contrastive_train batch_size=1536 per_gpu_batchsize=24 max_epoch=10 "
    "queue_size=11520 DR=False image_size=384 vit_randaug precision=16 learning_rate=5e-5 load_path=x.ckpt "
    "datasets=['coco']",
    "evaluate.sbatch": "Phase2 task_IRTR_evaluate test_only=True image_size=384 precision=16 load_path=x.ckpt "
    "datasets=['coco']",
}


@pytest.mark.parametrize("file", KEYS)
def test_every_node_runs_one_launcher_with_the_papers_settings(file, tmp_path):
    words = ["coco"] * ("dataset" in (ROOT / "scripts" / "slurm" / file).read_text())
    job = Job(tmp_path, file, *words, "num_workers=2", play="0", LOAD_PATH="x.ckpt", DATA_ROOT="/shared/data")
    assert job.end()[:2] == (0, None)
    for node, (line, variables) in enumerate(job.nodes()):
        assert line[:2] == ["-m", "lexlip.launch"] and line[-1] == "num_workers=2"
        wanted = {*KEYS[file].split(), "data_root=/shared/data", "log_dir=result", "num_gpus=8", "version=123456"}
        assert wanted <= set(line)
        assert ("resume_from=auto" in line) == (file != "evaluate.sbatch")
        assert variables == {
            "NNODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": "gpu7", "MASTER_PORT": "18456", "RUN_ID": "123456",
        }  # fmt: skip
    assert "--ntasks-per-node=1 --cpus-per-task=72" in (tmp_path / "srun").read_text()


def test_the_settings_of_the_job_itself():
    for file in KEYS:
        lines = (ROOT / "scripts" / "slurm" / file).read_text().splitlines()
        options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
        assert {"--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@120"} <= options


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_stop_a_job_saves_and_goes_back_into_the_queue(signum, tmp_path):
    job = Job(tmp_path, "phase1.sbatch")
    job.nodes()
    job.shell.send_signal(signum)
    assert job.end()[:2] == (75, "123456")
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_a_cancelled_job_stays_cancelled(tmp_path):
    job = Job(tmp_path, "phase1.sbatch", state="CANCELLED")
    job.nodes()
    job.shell.send_signal(signal.SIGTERM)
    assert job.end()[:2] == (75, None)


def test_launchers_that_were_asked_alone_put_the_job_back_too(tmp_path):
    # At preemption SLURM may signal the steps and not the batch script.
    assert Job(tmp_path, "phase1.sbatch", play="75").end()[:2] == (75, "123456")


def test_a_failed_job_is_not_repeated(tmp_path):
    assert Job(tmp_path, "phase1.sbatch", play="2").end()[:2] == (2, None)


@pytest.mark.parametrize("file, missing", [("phase2.sbatch", "LOAD_PATH"), ("finetune.sbatch", "coco or f30k")])
def test_what_is_missing_is_named(file, missing, tmp_path):
    code, _, out = Job(tmp_path, file, LOAD_PATH="").end()
    assert code != 0 and missing in out
