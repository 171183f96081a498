"""Make minipeft/data/snippets.csv.gz from the ground-truth files inside the source distribution of vaderSentiment 3.3.2.

    python examples/make_snippets.py [vaderSentiment-3.3.2.tar.gz]

Without an argument pip downloads the file. Making it again gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from minipeft.data import FOLDER, split_of

INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
THRESHOLD = 0.8  # mean rating, of −4 … 4, from which a snippet counts as positive, or negative below its opposite


def download() -> Path:
    folder = tempfile.mkdtemp()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder]
    subprocess.run([*pip, "vaderSentiment==3.3.2"], check=True)
    return next(Path(folder).glob("*.tar.gz"))


def rows(archive: Path) -> list[tuple[str, str, str, str]]:
    """(split, source, label, text) of every snippet, duplicates left out, in a fixed order."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(INNER).read()  # type: ignore[union-attr]
        licence = outer.extractfile("vaderSentiment-3.3.2/LICENSE.txt").read()  # type: ignore[union-attr]
    (FOLDER / "LICENSE.vader").write_bytes(licence)
    out = {}
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        for source, stem in SOURCES.items():
            raw = tar.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt").read()  # type: ignore[union-attr]
            for line in raw.decode("utf-8", errors="replace").splitlines():
                parts = line.split("\t")
                if len(parts) != 3:
                    continue
                text = " ".join(html.unescape(parts[2]).replace("''", '"').replace("\ufffd", "'").split())
                rating = float(parts[1])
                label = "positive" if rating >= THRESHOLD else "negative" if rating <= -THRESHOLD else ""
                if text:
                    out.setdefault(text.casefold(), (split_of(text), source, label, text))
    return sorted(out.values(), key=lambda r: (r[0], r[1], r[3]))


def main() -> None:
    archive = Path(sys.argv[1]) if len(sys.argv) > 1 else download()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "source", "label", "text"])
    table.writerows(rows(archive))
    with (FOLDER / "snippets.csv.gz").open("wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as packed:
        packed.write(text.getvalue().encode())
    print(f"{FOLDER / 'snippets.csv.gz'}: {len(text.getvalue().splitlines()) - 1} snippets")


if __name__ == "__main__":
    main()
