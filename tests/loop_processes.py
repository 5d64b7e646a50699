"""Run the small recipe in several processes that talk over gloo, as `accelerate launch` starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from loop_parts import NoiseSource, SmallSystem, losses, small_config, train

from xdyna.errors import UserError
from xdyna.train.run import Run
from xdyna.train.sharding import gathered

ACCELERATE = Path(__file__).parents[1] / "configs/accelerate"
Job = dict[str, Any]


def environment(name: str) -> dict[str, str]:
    """What `accelerate launch` tells the processes of a shipped configuration, by environment variables."""
    from accelerate.commands import launch as launcher

    parser = launcher.launch_command_parser()
    words = ["--config_file", str(ACCELERATE / f"{name}.yaml"), "--module", "xdyna.cli"]
    args, settings, _ = launcher._validate_launch_command(parser.parse_args(words))
    if name == "deepspeed":
        args.deepspeed_fields_from_accelerate_config = ",".join(settings.deepspeed_config)
        made = launcher.prepare_deepspeed_cmd_env(args)[1]
    elif name == "one_gpu":
        made = launcher.prepare_simple_launcher_cmd_env(args)[1]
    else:
        made = launcher.prepare_multi_gpu_env(args)
    return {key: value for key, value in made.items() if os.environ.get(key) != value}


def launch(jobs: list[Job], folder: Path, *, processes: int, env: dict[str, str] | None = None) -> None:
    """Do jobs one after the other in `processes` new processes.

    Args:
        jobs: each has `out` (a run folder), `settings` of `TrainConfig`, and optionally `resume`, `bad` (the sample
            that gives NaN) and `term` (the step in which the second process gets SIGTERM). What it found lies in
            `OUT.RANK.pt`.
        folder: for the list of jobs.
        processes: how many.
        env: further environment variables.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(env or {}),
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / "jobs.json")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=1000)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(said)


def do(job: Job) -> dict[str, Any]:
    """One job in this process: the losses, the first step's gradients, the final weights, what was refused."""
    out, first = Path(job["out"]), {}

    def note(run: Run, step: int) -> None:
        if step == 0:
            first.update({key: gathered(value.grad) for key, value in run.trained.items() if value.grad is not None})

        if step == job.get("term") and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    system = SmallSystem()
    kept = {key: value.clone() for key, value in system.frozen.state_dict().items()}
    try:
        train(
            small_config(out, **job["settings"]),
            system=system,
            source=NoiseSource(bad=job.get("bad", -1)),
            on_step=note,
            resume=job.get("resume", False),
        )
    except UserError as error:
        return {"refused": str(error)}
    frozen = {key: gathered(value) for key, value in system.frozen.state_dict().items()}
    same = all(torch.equal(value, frozen[key]) for key, value in kept.items())
    return {"losses": losses(out), "gradients": first, "frozen_same": same}


def main(path: Path) -> None:
    """Do the jobs of a list; the main process writes what came out."""
    for job in json.loads(path.read_text()):
        found = do(job)
        if os.environ["RANK"] == "0" or "refused" in found:
            torch.save(found, f"{job['out']}.{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
