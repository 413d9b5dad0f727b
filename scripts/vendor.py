"""Fetch the JavaScript that the pages carry with them, so that they need no other server.

MathJax draws the formulas; the widget manager of Jupyter shows the stored state of ipywidgets. Both
come from the npm registry through the `npm` client, are compared with the checksums below, and are
copied to book/_extra/vendor, from where they are served as they are. The files are committed: this
script says where they came from and renews them (`python scripts/vendor.py`).
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import distribution
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "book" / "_extra" / "vendor"
# package, sha256 of its archive, folder here, files to keep
PACKAGES = [
    (
        "mathjax@3.2.2",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        "mathjax",
        ["es5/tex-svg.js", "LICENSE"],
    ),
    (
        "@jupyter-widgets/html-manager@1.0.15",
        "2b9d65cb7913e1c7d671757a10008b32c9c2448d4429513371e55c07d6107638",
        "ipywidgets",
        [
            "dist/embed.js",
            "dist/embed.js.LICENSE.txt",
            # Font Awesome's web fonts (SIL OFL 1.1), which embed.js asks for
            "dist/1551f4f60c37af51121f.woff2",
            "dist/7a3337626410ca2f4071.woff2",
            "dist/d878b0a6a1144760244f.woff2",
        ],
    ),
]


def fetch(package: str, checksum: str, folder: Path) -> Path:
    """Download the archive of an npm package into `folder` and verify it."""
    result = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / result.stdout.split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != checksum:
        sys.exit(f"{package}: sha256 {found} found, {checksum} expected")
    return archive


def main() -> None:
    """Renew book/_extra/vendor."""
    with tempfile.TemporaryDirectory() as temporary:
        for package, checksum, name, files in PACKAGES:
            archive = fetch(package, checksum, Path(temporary))
            target = VENDOR / name
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            with tarfile.open(archive) as contents:
                for path in files:
                    source = contents.extractfile(f"package/{path}")
                    (target / Path(path).name).write_bytes(source.read())
            print(f"{package}: {len(files)} files in {target.relative_to(VENDOR.parents[2])}")
    # The archive of the widget manager lacks the licence of its repository, which ipywidgets ships.
    licence = next(f for f in distribution("ipywidgets").files if f.name == "LICENSE")
    shutil.copyfile(licence.locate(), VENDOR / "ipywidgets" / "LICENSE")


if __name__ == "__main__":
    main()
