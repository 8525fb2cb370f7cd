"""The job for SLURM, with stand-ins for SLURM's own programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$NOTE"; [ "$1" != show ] || echo node1',
    "srun": 'trap \'echo stopped >> "$NOTE"; exit 143\' TERM; echo "srun $*" >> "$NOTE"; [ -z "${ENDS:-}" ] || exit "$ENDS"; for i in $(seq 600); do sleep 0.1; done',
}


@pytest.fixture
def job(tmp_path):
    """`job(**settings)`: the running script, and the file in which its programs note what they were told."""
    if sys.platform == "win32":
        pytest.skip("there is no bash")
    note, running = tmp_path / "note", []
    for name, script in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def start(**settings):
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(note), **settings}
        env |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1]"}
        running.append(subprocess.Popen(["bash", "examples/train.slurm", "default"], env=env, start_new_session=True))
        return running[-1], note

    yield start
    for script in running:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()


def noted(note: Path, word: str) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until and (not note.exists() or word not in note.read_text()):
        time.sleep(0.05)
    return note.read_text()


def test_before_its_time_limit_a_job_is_stopped_and_queued_again(job):
    script, note = job()
    assert "-m sharedllm.train default" in noted(note, "srun")
    assert "#SBATCH --signal=B:USR1@" in Path("examples/train.slurm").read_text()
    script.send_signal(signal.SIGUSR1)
    assert script.wait(60) == 0
    assert noted(note, "requeue").splitlines()[-2:] == ["stopped", "scontrol requeue 7"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_is_not_queued_again(job, code):
    script, note = job(ENDS=str(code))
    assert script.wait(60) == code and "requeue" not in note.read_text()
