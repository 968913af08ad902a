"""Runs mypy over the package as it is installed: models/ is pyllm.models there and quantize/ pyllm.quantize, which mypy cannot learn from
package-dir.

    python tools/typecheck.py [mypy options]

The sources are laid out with symbolic links in a temporary folder; messages name the files of the checkout. Exit status: mypy's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# folder of the checkout -> package inside of pyllm; as package-dir in pyproject.toml
PACKAGES = {"models": "pyllm.models", "quantize": "pyllm.quantize"}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pyllm"
        package.mkdir()
        for path in (ROOT / "pyllm").iterdir():
            (package / path.name).symlink_to(path)
        for source, name in PACKAGES.items():
            (package / name.rpartition(".")[2]).symlink_to(ROOT / source)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"),
                   "-p", "pyllm", *sys.argv[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    for source, name in PACKAGES.items():
        done.stdout = done.stdout.replace(name.replace(".", os.sep) + os.sep, source + os.sep)
    print(done.stdout + done.stderr, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
