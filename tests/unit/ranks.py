"""Run a command in several processes, as torchrun does, but forked from one with torch imported.

    python ranks.py PROCESSES SCRIPT [ARGUMENT ...]
    python ranks.py PROCESSES -m MODULE [ARGUMENT ...]

On two cores most of the time of a small run under torchrun is every process's own import.
"""

import os
import runpy
import signal
import socket
import sys

import torch

import locality.cli  # noqa: F401 (what the command will import)


def work(rank: int, command: list[str]) -> None:
    """Be one of the processes: run the command as the main program, with torchrun's variables."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def main() -> int:
    """Fork the processes and wait for them; when one fails, stop the others."""
    processes, command = int(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    if "train" in command:  # the first optimiser imports as much again
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    children = set()
    for rank in range(processes):
        if child := os.fork():
            children.add(child)
        else:
            work(rank, command)  # an exception ends this process with its traceback
            return 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
