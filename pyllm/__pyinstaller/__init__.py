"""For PyInstaller, which finds this folder through an entry point: what a frozen program needs of pyllm."""

from pathlib import Path


def hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
