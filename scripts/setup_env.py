"""Create the virtual environment of the book and install requirements.lock into it.

`make` calls it before everything else; when nothing has changed since the last call it returns at
once. It needs nothing but Python 3.10 to 3.13. What it does about torch, in this order:

1. `--torch SPEC` installs that (a version, a wheel file), from `--torch-index ADDRESS` if given.
2. A torch that the calling Python can already import (a GPU machine, a cluster) is kept: the
   environment then sees the system's packages, and no torch is installed.
3. Otherwise the version of requirements.lock. On a machine without an NVIDIA GPU it first asks pip
   what would come along and refuses a CUDA build, which weighs several gigabytes.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# What only torch asks for; a torch of the system's brings its own versions of these.
TORCH_ONLY = {"torch", "sympy", "mpmath", "filelock", "fsspec"}
CUDA_BUILD = re.compile(r"^(nvidia|cuda)-")
REFUSAL = """\
This machine has no NVIDIA GPU, and pip would fetch a CUDA build of {torch} here (several
gigabytes). Say where to take a CPU build from, with the address that pytorch.org shows under
"Start locally" for your system, pip and CPU:

    make {goal} TORCH_INDEX=ADDRESS

or give a wheel file (TORCH=path/to/torch.whl), or install torch yourself first: it will be kept."""


def parse_arguments() -> argparse.Namespace:
    """Return the options given by the Makefile."""
    parser = argparse.ArgumentParser(description="Create the environment and install the lock.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--torch", default="", help="a requirement or a wheel file")
    parser.add_argument("--torch-index", default="", help="address of an index of CPU builds")
    parser.add_argument("--goal", default="book", help="the make target to name in messages")
    return parser.parse_args()


def system_torch() -> str | None:
    """Return the version of the torch that this Python can import, or None."""
    command = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def has_nvidia_gpu() -> bool:
    """Return whether an NVIDIA driver answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def create(folder: Path, *, system_site_packages: bool) -> None:
    """Create the environment unless it is there with the wanted settings and interpreter."""
    version = "{}.{}.{}".format(*sys.version_info)
    wanted = {"include-system-site-packages": str(system_site_packages).lower(), "version": version}
    config = folder / "pyvenv.cfg"
    if config.exists():
        lines = [line.partition("=") for line in config.read_text().splitlines()]
        found = {key.strip(): value.strip() for key, _, value in lines}
        if all(found.get(key) == value for key, value in wanted.items()):
            return
    print(f"Creating {folder.name} with Python {version}", flush=True)
    venv.create(folder, system_site_packages=system_site_packages, clear=True, with_pip=True)


def pip(folder: Path, *arguments: str, capture: bool = False) -> str:
    """Run pip of the environment and return what it printed, if captured."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None
    )
    if result.returncode != 0:
        sys.exit(f"pip {arguments[0]} failed; what it said stands above")
    return result.stdout or ""


def refuse_cuda_build(folder: Path, torch: list[str], goal: str) -> None:
    """Exit with advice if installing `torch` here would bring CUDA packages along."""
    report = json.loads(
        pip(folder, "install", "--quiet", "--dry-run", "--report", "-", *torch, capture=True)
    )
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    if any(CUDA_BUILD.match(name) for name in names):
        sys.exit(REFUSAL.format(torch=torch[0], goal=goal))


def install(folder: Path, options: argparse.Namespace, kept: str | None) -> None:
    """Install torch as decided, then everything else in the lock, and check the whole."""
    lines = LOCK.read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith(("#", "-e"))]
    names = {line: re.split(r"[=<>; ]", line, maxsplit=1)[0] for line in requirements}
    rest = [line for line in requirements if names[line] != "torch"]
    if kept:
        rest = [line for line in rest if names[line] not in TORCH_ONLY]
    else:
        pinned = next(line for line in requirements if names[line] == "torch")
        torch = [options.torch or pinned]
        if options.torch_index:
            torch += ["--index-url", options.torch_index]
        if sys.platform == "linux" and not has_nvidia_gpu():
            refuse_cuda_build(folder, torch, options.goal)
        # Its dependencies come from the lock, or with a build of its own kind.
        pip(folder, "install", "--quiet", "--no-compile", *torch)
    listed = folder / "requirements.installed.txt"
    listed.write_text("\n".join(rest) + "\n")
    print(f"Installing {len(rest)} packages into {folder.name} (one to three minutes)", flush=True)
    # Modules are compiled when first imported: that saves half of the processor time.
    pip(folder, "install", "--quiet", "--no-compile", "-r", str(listed), "-e", str(ROOT))
    if not kept:  # the system's packages are the system's business
        pip(folder, "check")


def main() -> None:
    """Bring the environment up to date with the lock."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version.split()[0]} found, 3.10 to 3.13 expected: make PYTHON=...")
    options = parse_arguments()
    inputs = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), sys.version.encode()]
    inputs += [options.torch.encode(), options.torch_index.encode(), str(ROOT).encode()]
    digest = hashlib.sha256(b"\0".join(inputs)).hexdigest()
    stamp = options.venv / ".installed"
    if stamp.exists() and stamp.read_text() == digest:
        return
    kept = None if options.torch or options.torch_index else system_torch()
    if kept:
        print(f"Keeping torch {kept} of {sys.executable}", flush=True)
    create(options.venv, system_site_packages=kept is not None)
    install(options.venv, options, kept)
    stamp.write_text(digest)


if __name__ == "__main__":
    main()
