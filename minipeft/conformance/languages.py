"""The languages and libraries in which there is the beginning of a harness: the folders of skeletons/."""

from pathlib import Path

SKELETONS = Path(__file__).parent / "skeletons"
LANGUAGES = tuple(sorted(p.name for p in SKELETONS.iterdir() if p.is_dir() and not p.name.startswith("_")))
