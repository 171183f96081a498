"""The main job: adapt one base to one task with several methods and seeds, measure, and say what can be concluded.

Every method trains on the same batches from the same start, the family's classifier beside it. Two more rows judge them:
"majority" always says the commonest class, "frozen" trains nothing but the classifier. What a decoder lost of its original
task is its loss on held-out text, with the adapter on and off.

    task        base, data, batches: what all methods see
    outcomes    one method with one seed; many of them in processes
    rates       learning rates of methods
    statistics  differences, intervals, which of them can be told apart
    findings    rows, and the sentences that follow from them
    table       the rows in a terminal
    page        the rows, plots and explanations in one HTML file
"""

from minipeft.compare.findings import Findings, Row, row_of, summarise
from minipeft.compare.outcomes import FAMILIES, JUDGES, Outcome, compare, everything, measure
from minipeft.compare.rates import usual_rate
from minipeft.compare.task import Task, head_of, judge, judged, prepare, start, text_loss

__all__ = [
    "FAMILIES",
    "JUDGES",
    "Findings",
    "Outcome",
    "Row",
    "Task",
    "compare",
    "everything",
    "head_of",
    "judge",
    "judged",
    "measure",
    "prepare",
    "row_of",
    "start",
    "summarise",
    "text_loss",
    "usual_rate",
]  # fmt: skip
