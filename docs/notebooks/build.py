"""Makes the notebooks: each NN_name.py here, the source, is executed and becomes NN_name.ipynb, which is committed.

    python docs/notebooks/build.py        all of them
    python docs/notebooks/build.py 2 5    these

The sources are in Jupytext's percent format: cells of text and of Python, and no outputs.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9]*.py"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def built(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, executed, with nothing in it that another run would not give again."""
    book = jupytext.read(source, fmt="py:percent")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # sums in one order, whatever the machine
    NotebookClient(
        book,
        timeout=120,
        kernel_name=KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    book.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for n, cell in enumerate(book.cells):
        cell.id, cell.metadata = f"cell-{n}", nbformat.NotebookNode()
    nbformat.validate(book)
    return book


def main(numbers: list[str]) -> None:
    """Write the notebooks of these numbers, or all."""
    chosen = [s for s in SOURCES if not numbers or str(int(s.stem[:2])) in numbers]
    with ThreadPoolExecutor(2) as threads:
        for source, book in zip(chosen, threads.map(built, chosen), strict=True):
            path = source.with_suffix(".ipynb")
            nbformat.write(book, path)
            print(f"{path.name}: {len(book.cells)} cells, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
