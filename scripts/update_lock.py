"""Rewrite requirements.lock from requirements.txt, for Python 3.10 to 3.13 on Linux and macOS.

Needs `uv` (pip install uv). One resolution serves every supported interpreter; environment
markers separate versions where newer releases have dropped an older Python. The CUDA companions of
torch are left out, so that a CPU build of torch pulls in none of them; scripts/setup_env.py deals
with machines that have a GPU. Run it as `make lock`.
"""

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
LEAVE_OUT = re.compile(r"^(nvidia-|cuda-|triton\b|-e )|; (sys_platform|os_name) == '(win32|nt)'$")
HEADER = """\
# Exact versions for Python 3.10 to 3.13 on Linux and macOS, written by scripts/update_lock.py from
# requirements.txt. No CUDA package is listed: the CPU build of torch needs none.
"""


def resolve() -> list[str]:
    """Return the lines of the universal resolution of requirements.txt."""
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder, "constraint.txt")
        constraint.write_text(TORCH + "\n")
        command = ["uv", "pip", "compile", "--universal", "--python-version", "3.10", "--upgrade"]
        command += ["--no-annotate", "--no-header", "--quiet", "--constraint", str(constraint)]
        output = subprocess.run(
            [*command, "requirements.txt"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
    return output.splitlines()


def main() -> None:
    """Write requirements.lock."""
    lines = [line for line in resolve() if not LEAVE_OUT.search(line)]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join([*lines, "", "-e ."]) + "\n")
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
