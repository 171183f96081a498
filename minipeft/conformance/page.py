"""One self-contained HTML page of a run: methods × implementations, each cell a mark for each group and opening to what stands behind it,
and every finding.

Without JavaScript it is a readable document; with it, cells filter the details. Nothing is loaded from elsewhere, and all text
is escaped: results come from programs that are not ours.
"""

from __future__ import annotations

import html as markup
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.findings import Finding, findings
from minipeft.conformance.groups import LETTERS
from minipeft.conformance.report import facts, legend, reproduction, told
from minipeft.conformance.results import Result, address
from minipeft.conformance.verdicts import MARKS, grouped, implementations, states, verdict
from minipeft.plain import plain

STYLE = """
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fbfbf9;--soft:#6b7280;--line:#d9dbd6;--card:#fff;
--PASS:#1a6fb0;--READING:#0b7285;--FAIL:#b8420a;--ERROR:#8b2fb8;--SKIP:#6b7280}
@media(prefers-color-scheme:dark){:root{--fg:#e6e7e3;--bg:#16181b;--soft:#9aa0a6;--line:#34383d;--card:#1e2125;
--PASS:#6cb6ff;--READING:#4cc9e0;--FAIL:#ff9a5c;--ERROR:#d09bf0;--SKIP:#9aa0a6}}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:0 auto;
max-width:96rem;padding:2rem 1rem 6rem}h1{font-size:1.7rem;margin:0 0 .2rem}.lead{color:var(--soft);margin:0 0 1.5rem}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:var(--card)}
table.matrix{border-collapse:collapse;width:100%}.matrix th,.matrix td{padding:.35rem .7rem;text-align:left;
border-bottom:1px solid var(--line);vertical-align:top}.matrix thead th{position:sticky;top:0;background:var(--card)}
.matrix tbody th,.matrix th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
.matrix td a{display:block;text-decoration:none;color:inherit;border-radius:.35rem;margin:0 -.5rem;padding:.05rem .5rem}
.matrix td a:hover,.matrix td a:focus{outline:2px solid currentColor}.matrix small{color:var(--soft);display:block;max-width:16rem}
.groups{white-space:nowrap}.groups i{display:inline-block;width:1.15em;text-align:center;font:600 .85em/1.15 ui-monospace,monospace;
color:var(--c);border-radius:.2rem;background:color-mix(in srgb,var(--c) 14%,transparent);margin-right:1px}
.groups i.SKIP,.groups i.NA{background:none}.groups b{display:block;font-weight:400;font-size:.75em;color:var(--soft)}
.legend{color:var(--soft);font-size:.9rem}.PASS,.PART{--c:var(--PASS)}.READING{--c:var(--READING)}.FAIL{--c:var(--FAIL)}.ERROR{--c:var(--ERROR)}.SKIP,.NA{--c:var(--SKIP)}
.chips{margin:1rem 0;display:flex;gap:.5rem;flex-wrap:wrap}.chips button{font:inherit;border:1px solid var(--c);color:var(--c);
background:none;border-radius:1rem;padding:.1rem .8rem;cursor:pointer}.chips button[aria-pressed=false]{opacity:.35}
details{border:1px solid var(--line);border-left:.3rem solid var(--c,var(--line));border-radius:.5rem;margin:.5rem 0;
padding:.3rem .8rem;background:var(--card);overflow-x:auto}summary{cursor:pointer;font-weight:600}summary small{color:var(--soft);font-weight:400}
pre{overflow-x:auto;font:13px/1.45 ui-monospace,monospace;background:color-mix(in srgb,var(--line) 30%,transparent);
padding:.6rem .8rem;border-radius:.4rem}table.checks{border-collapse:collapse;width:100%;font-size:.93rem}
.checks td,.checks th{text-align:left;padding:.2rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
.checks b{color:var(--c)}.bar{display:inline-block;width:8rem;height:.55rem;background:var(--line);border-radius:.3rem;
overflow:hidden;vertical-align:middle}.bar i{display:block;height:100%;background:var(--c)}.why{white-space:pre-wrap;
font:13px/1.45 ui-monospace,monospace;color:var(--soft)}[hidden]{display:none}
"""
SCRIPT = """
const shown=new Set(["PASS","READING","FAIL","ERROR"]);
const rows=()=>document.querySelectorAll("tr[data-outcome]");
function apply(){for(const r of rows())r.hidden=!shown.has(r.dataset.outcome);
for(const d of document.querySelectorAll("details.cell"))d.hidden=![...d.querySelectorAll("tr[data-outcome]")].some(r=>!r.hidden)}
for(const b of document.querySelectorAll(".chips button"))b.onclick=()=>{const o=b.dataset.o;
shown.has(o)?shown.delete(o):shown.add(o);b.setAttribute("aria-pressed",shown.has(o));apply()};
for(const a of document.querySelectorAll('a[href^="#"]'))a.onclick=()=>{const d=document.getElementById(a.hash.slice(1));
if(d){d.hidden=false;d.open=true}};
for(const b of document.querySelectorAll(".chips button"))b.setAttribute("aria-pressed",shown.has(b.dataset.o));apply();
if(location.hash){const d=document.getElementById(location.hash.slice(1));if(d)d.open=true}
"""


def html(
    results: Sequence[Result], cases: Mapping[str, Case], about: Mapping[str, Any], missing: Sequence[str] = ()
) -> str:
    """The page. `cases` gives equations and configurations by id; `about` a few facts for its head; `missing` lines of what is
    required and not answered."""
    names, cells = implementations(results), grouped(results)
    methods = list(dict.fromkeys(m for m, _ in cells))
    versions = {r.implementation: r.version for r in results}
    counts = {o: sum(r.outcome == o for r in results) for o in ("PASS", "READING", "FAIL", "ERROR", "SKIP", "N/A")}
    head = "".join(f'<th scope="col">{escape(n)}<br><small>{escape(versions[n])}</small></th>' for n in names)
    body = "".join(
        f"<tr><th scope='row'>{escape(m)}</th>{''.join(_cell(m, n, cells) for n in names)}</tr>" for m in methods
    )
    chips = "".join(
        f'<button class="{_css(o)}" data-o="{_css(o)}" aria-pressed="true">{o} {n}</button>'
        for o, n in counts.items()
        if n
    )
    parts = "".join(_details(m, n, cells[m, n], cases) for m in methods for n in names if (m, n) in cells)
    found = "".join(_finding(f, cases) for f in findings(results))
    lacks = "".join(f"<li>{escape(line)}</li>" for line in missing)
    code = "".join(_code(m) for m in methods)
    said = ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in about.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Who computes what</title><style>{STYLE}</style></head><body><h1>Who computes what</h1>"
        f'<p class="lead">{len(results)} judgements of minipeft verify; {said}. A cell opens to its cases.</p>'
        f'<div class="scroll"><table class="matrix"><thead><tr><th>method</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="legend">{"<br>".join(map(escape, legend()))}</p>'
        f"{lacks and f'<h2>Required and not answered</h2><ul>{lacks}</ul>'}"
        f"{found and f'<h2>Findings</h2>{found}'}<h2>Cases</h2>"
        f'<div class="chips" role="group" aria-label="outcomes">{chips}</div>{parts}<h2>The reference</h2>{code}<script>{SCRIPT}</script></body></html>\n'
    )


def escape(text: str) -> str:
    """Text of unknown origin in HTML; its lines stay."""
    return "\n".join(markup.escape(plain(line)) for line in text.split("\n"))


def _css(outcome: str) -> str:
    return outcome.replace("/", "")


def anchor(method: str, name: str) -> str:
    """Where what an implementation gives for a method is told, in this page."""
    return "c-" + "".join(c if c.isalnum() else f"-{ord(c):x}-" for c in f"{method} {name}")


def _cell(method: str, name: str, cells: Mapping[tuple[str, str], list[Result]]) -> str:
    found = verdict(cells.get((method, name), ()))
    if not found.there:
        return "<td>–</td>"
    of = states(cells[method, name])
    boxes = "".join(
        f'<i class="{_css(w)}" title="{g}: {MARKS[w][1]}"><b>{LETTERS[g]}</b>{MARKS[w][0]}</i>' for g, w in of.items()
    )
    read = "; ".join(f"{group} {MARKS[w][1]}" for group, w in of.items() if w != "N/A")
    said = found.missing()
    return (
        f'<td><a href="#{anchor(method, name)}"><span class="groups" role="img" aria-label="{escape(read)}">{boxes}</span> '
        f"{found.title}{said and f'<small>({escape(said)})</small>'}</a></td>"
    )


def _finding(f: Finding, cases: Mapping[str, Case]) -> str:
    first = f.first
    case = cases.get(first.id)
    lines = [line for line in facts(f, folds=False) if line not in (first.url, *f.addresses)]
    links = "".join(
        f'<a href="{escape(url)}">{escape(url)}</a><br>' for url in (*f.addresses, address(first.url)) if url
    )
    who = f"{first.implementation} {first.version}".strip()
    return (
        f'<details class="finding {_css(first.outcome)}"><summary>{escape(who)}: {escape(f.headline)}'
        f"{' <small>known</small>' if f.known else ''}</summary>"
        f"{f'<pre>{escape(case.equation)}</pre>' if case is not None else ''}{links}"
        f'<p class="why">{escape(chr(10).join(lines))}</p></details>'
    )


def _details(method: str, name: str, results: Sequence[Result], cases: Mapping[str, Case]) -> str:
    found = verdict(results)
    if not found.there:
        return ""
    case = next((cases[r.id] for r in results if r.id in cases), None)
    equation = f"<pre>{escape(case.equation)}</pre><p>{escape(case.source)}</p>" if case is not None else ""
    rows = "".join(_row(r) for r in results)
    return (
        f'<details class="cell" id="{anchor(method, name)}"><summary>{escape(method)} in {escape(name)} '
        f"<small>{escape(str(found))}</small></summary>{equation}"
        f'<p><a href="#code-{escape(method)}">{escape(method)}.py, the reference</a></p>'
        f'<table class="checks"><thead><tr><th>case</th><th>outcome</th><th>err/(u·cond)</th><th>what</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def _row(r: Result) -> str:
    wrong = r.outcome in ("FAIL", "ERROR")
    said = "\n".join(line for line in told(r) if line not in (r.url, reproduction(r))) if wrong else r.reason
    url = escape(address(r.url))
    link = f'<br><a href="{url}">{url}</a>' if url else ""
    again = f"<pre>{escape(reproduction(r))}</pre>" if wrong else ""
    css = _css(r.outcome)
    return (
        f'<tr class="{css}" data-outcome="{css}"><td>{escape(r.id.split(".", 1)[1])}</td><td><b>{r.outcome}</b></td>'
        f'<td>{_bar(r.ratio)}</td><td><span class="why">{escape(said)}</span>{link}{again}</td></tr>'
    )


def _bar(ratio: float | None) -> str:
    """The ratio on a logarithmic bar, from 0.01 to 10 million."""
    if ratio is None:
        return ""
    share = 100.0 if not math.isfinite(ratio) else min(100.0, max(2.0, 100 * (math.log10(max(ratio, 1e-2)) + 2) / 9))
    return f'<span class="bar"><i style="width:{share:.0f}%"></i></span> {ratio:.2g}'


def _code(method: str) -> str:
    """The method's own file, where minipeft has one."""
    from minipeft.method import METHODS, load_methods

    load_methods()
    if method not in METHODS:
        return ""
    source = inspect.getsource(sys.modules[METHODS[method].__module__])
    return f'<details id="code-{escape(method)}"><summary>{escape(method)}.py</summary><pre>{escape(source)}</pre></details>'
