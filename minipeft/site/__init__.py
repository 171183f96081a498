"""The documentation site: `minipeft site OUT` makes all of it, by mkdocs with its Material theme.

    equations   what stands in a docstring, typeset as MathML, which browsers draw without a script
    trained     a method trained on the package's task; what it makes of one site, before and after
    pictures    heat maps and singular values of that
    effects     what a setting changes, computed for all values of a slider
    annotated   a method's file, prose beside code
    judged      what the field and the deviations say of a method
    method      a method's page
    claims      what is said of such methods, each with a measurement
    pages       those that are no method's: of docs/, families, the tape, notebooks
    build       all pages, and the site of them

A page holds nothing that is written for it alone: docstrings, declarations, recorded cases, and the pages of docs/.
"""
