"""Tapes as one self-contained page: a switch between methods, a slider for the layers that have the method, and all side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from minipeft.plain import plain
from minipeft.tape.record import TAPED, Array, Part, Tape
from minipeft.tape.svg import COLOURS, DARK, LEGEND
from minipeft.tape.text import chips, kept_in, kib, part_names, shape_of, told, totals

BODY = f"""
:root{{color-scheme:light dark;{COLOURS}}}
@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:64rem;padding:1.2rem 1rem 3rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}}
h1{{font-size:1.5rem;margin:.2rem 0}}h2{{font-size:1.15rem;margin:2rem 0 .4rem}}
p{{margin:.4rem 0;max-width:46rem}}
"""
RULES = """
.about{color:var(--faint);font-size:.85rem;overflow-wrap:anywhere}
.tape,.sides{font:12.5px/1.35 ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}
.pick{position:sticky;top:0;background:var(--back);padding:.5rem 0;border-bottom:1px solid var(--line);z-index:2}
.pick div{display:flex;flex-wrap:wrap;gap:.35rem;align-items:center}
.pick button{font:inherit;font-size:.9rem;padding:.25rem .7rem;border:1px solid var(--line);border-radius:2rem;background:none;color:inherit;cursor:pointer}
.pick button[aria-pressed=true]{background:var(--tape);border-color:var(--tape);color:var(--back);font-weight:600}
.pick label{display:flex;flex:1 1 100%;align-items:center;gap:.6rem;font-size:.9rem;margin-top:.5rem}
.pick input{flex:0 1 14rem;min-width:5rem;accent-color:var(--tape)}
.sums{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:.2rem 1rem;margin:.8rem 0}
.sums div{font-size:.85rem;color:var(--faint)}.sums b{display:block;font-size:1.35rem;line-height:1.2;color:var(--ink)}
.tape{list-style:none;margin:0;padding:0}
.tape li{margin:0;display:grid;grid-template-columns:7.5rem 1fr 7.5rem;gap:.15rem .6rem;align-items:start;padding:.16rem .3rem .16rem .7rem;border-left:4px solid var(--line);color:var(--faint)}
.tape li.taped{border-color:var(--tape);color:var(--ink)}
.tape li.layer{display:block;font:600 13px system-ui,sans-serif;color:var(--ink);border-color:transparent;padding-top:.6rem}
.tape li.end{display:flex;gap:.6rem;align-items:center;border:0;color:var(--end);font:600 13px system-ui,sans-serif;padding-left:0}
.tape li.end::before,.tape li.end::after{content:'';height:3px;background:var(--end);flex:0 0 1.2rem}.tape li.end::after{flex:1}
.ops{display:flex;flex-wrap:wrap;gap:.2rem}.ops span{padding:0 .4rem;border-radius:.25rem;background:var(--frozen);color:var(--faint)}
.ops .taped{background:var(--soft);color:var(--ink)}.ops .dropped{background:var(--offsoft);color:var(--off);text-decoration:line-through}
.ops .array{background:var(--trainsoft);color:var(--train)}.cut{flex:1 1 100%;color:var(--off)}
.kept{display:grid;grid-template-columns:1fr 3rem;align-items:center;text-align:right}
.kept i{display:block;height:.65rem;border-radius:2px;background:var(--tape)}.kept.no{color:var(--faint)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem;color:var(--faint);margin:.8rem 0}
.legend i{display:inline-block;width:.9rem;height:.75rem;border-radius:.2rem;margin-right:.35rem}
.l-taped{background:var(--soft)}.l-frozen{background:var(--frozen)}.l-dropped{background:var(--offsoft)}.l-array{background:var(--trainsoft)}.legend .l-end{background:var(--end);height:3px;vertical-align:middle}
.wide{overflow-x:auto}
.sides{border-collapse:separate;border-spacing:3px 2px;width:100%}
.sides th{font:600 13px system-ui,sans-serif;text-align:right;vertical-align:bottom;padding:.1rem .4rem}
.sides th:first-child{position:sticky;left:0;background:var(--back);text-align:left;font:inherit;font-weight:400;white-space:nowrap;z-index:1}
.sides td{text-align:right;min-width:5.2rem;padding:0 .4rem;border-radius:.2rem;border-top:3px solid transparent;background-clip:padding-box}
.sides td.taped{background-color:var(--soft)}.sides td.frozen{background-color:var(--frozen)}.sides td.ends{border-top-color:var(--end);border-radius:0}
.sides td.taped{background-image:linear-gradient(var(--tape),var(--tape));background-repeat:no-repeat;background-position:0 100%;background-size:var(--w,0) 3px}
.sides .sum td{font-weight:600}.sides .sum th:first-child{color:var(--faint);font-family:system-ui,sans-serif}
.sides .gap th{height:.5rem}
@media(max-width:40rem){.tape li{grid-template-columns:1fr 6.5rem}.tape .ops{grid-column:1/-1;grid-row:2}.kept{grid-template-columns:1fr 2.6rem}}
"""
STYLE = BODY + RULES  # of a page; of fragments in another page: RULES, and its own values for COLOURS
SCRIPT = """
const panels=[...document.querySelectorAll('[data-tape]')],buttons=[...document.querySelectorAll('.pick button')],
slider=document.querySelector('.pick input'),said=document.querySelector('.pick output');let at=0;
function show(){const from=slider?+slider.value:0;
panels.forEach(p=>{p.hidden=p.dataset.tape!=at||p.dataset.from!=from});
buttons.forEach((b,i)=>b.setAttribute('aria-pressed',i==at));
if(slider){const last=+slider.max;said.textContent=from==0?'0: all it goes to':from==last?last+' alone':from+' up'}}
buttons.forEach((b,i)=>b.onclick=()=>{at=i;show()});if(slider)slider.oninput=show;show();
"""
GAP = "<tr class=gap><th></th></tr>"
INTRO = (
    "One forward and backward pass of a tiny model, as it was recorded. What is computed from frozen numbers alone is grey and keeps "
    "nothing. From the first trained array on every op is on the tape, with what its gradient will need; the gradient comes back "
    "from the loss, and ends where the tape begins."
)


def page(by_layer: Mapping[str, Sequence[Tape | str]], beside: Sequence[Tape] = (), title: str = "The tape") -> str:
    """The page, self-contained; what it shows is as for `choosing`."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{_safe(title)}</title><style>{STYLE}</style><h1>{_safe(title)}</h1><p>{INTRO}</p>\n"
        f"{choosing(by_layer, beside)}<script>{SCRIPT}</script></html>\n"
    )


def choosing(by_layer: Mapping[str, Sequence[Tape | str]], beside: Sequence[Tape] = ()) -> str:
    """A switch, a slider and what they choose, a fragment of a page that has `RULES`, and `SCRIPT` at its end.

    `by_layer[method][k]` is its tape when it is attached from layer k on, 0: wherever it goes by itself; or a line that says why there is
    none. `beside` are compared at the end.
    """
    most = (
        max((p.kept for tapes in by_layer.values() for t in tapes if isinstance(t, Tape) for p in t.parts), default=0)
        or 1
    )
    panels = "".join(
        f"<section data-tape={i} data-from={k}{'' if i == k == 0 else ' hidden'}>{_panel(tape, most)}</section>\n"
        for i, tapes in enumerate(by_layer.values())
        for k, tape in enumerate(tapes)
    )
    names = "".join(
        f"<button type=button aria-pressed={'false' if i else 'true'}>{_safe(n)}</button>"
        for i, n in enumerate(by_layer)
    )
    last = max(map(len, by_layer.values()), default=1) - 1
    slider = (
        f"<label>from layer <input type=range min=0 max={last} value=0 step=1><output></output></label>" if last else ""
    )
    return f"<div class=pick><div>{names}{slider}</div></div>\n{panels}{legend()}" + (
        f"<h2>Side by side</h2><p class=about>KiB that each part keeps.</p>{sides(beside)}" if beside else ""
    )


def panel(tape: Tape) -> str:
    """One tape as a fragment of a page that has `RULES`."""
    return _panel(tape, max((p.kept for p in tape.parts), default=0) or 1)


def legend() -> str:
    """What the colours mean, as a fragment."""
    return (
        "<div class=legend>"
        + "".join(f"<span><i class=l-{k}></i>{_safe(v)}</span>" for k, v in LEGEND.items())
        + "</div>"
    )


def sides(tapes: Sequence[Tape]) -> str:
    """Tapes as columns of a table, a fragment."""
    names = part_names(tapes)
    most = max((kept_in(t, n) or 0 for t in tapes for n in names), default=0) or 1
    head = "<tr><th></th>" + "".join(f"<th>{_safe(t.label)}</th>" for t in tapes) + "</tr>"
    body, last = "", ""
    for name in names:
        here = name.partition("layers.")[2].partition(".")[0]
        cells = "".join(_cell(t, name, most) for t in tapes)
        body += (GAP if here != last else "") + f"<tr><th>{_safe(name)}</th>{cells}</tr>\n"
        last = here
    body += GAP
    for said, row in zip(totals(tapes[0]), zip(*(totals(t).values() for t in tapes))):
        body += f"<tr class=sum><th>{said}</th>{''.join(f'<td>{x}</td>' for x in row)}</tr>\n"
    return f"<div class=wide tabindex=0><table class=sides><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _cell(tape: Tape, name: str, most: int) -> str:
    kept = kept_in(tape, name)
    if kept is None:
        return "<td class=frozen></td>" if name in tape.route else "<td></td>"
    ends = " ends" if tape.end and tape.end.name == name else ""
    return f"<td class='taped{ends}' style='--w:{100 * kept / most:.0f}%'>{kib(kept)}</td>"


def _safe(said: str) -> str:
    return escape(plain(said))


def _panel(tape: Tape | str, most: int) -> str:
    if isinstance(tape, str):
        return f"<p class=about>{_safe(tape)}</p>"
    sums = "".join(f"<div><b>{number}</b>{said}</div>" for said, number in totals(tape).items())
    rows = "".join(_rows(tape, most))
    other = "".join(_array(a, a.key.partition("/")[2].strip(":")) for a in tape.elsewhere)
    other = f"<p class='tape ops'>{other} of no one part</p>" if other else ""
    return f"<p class=about>{_safe(tape.about)}</p><div class=sums>{sums}</div><ol class=tape>{rows}</ol>{other}"


def _rows(tape: Tape, most: int) -> Iterator[str]:
    run, stack = 1, ""
    for part in tape.parts:
        if part.run != run:
            run, stack = part.run, ""
            yield f"<li class=layer>pass {run}</li>"
        own = part.name.partition("layers.")[2].partition(".")[2]
        here = part.name[: -len(own) - 1] if own else ""
        if here != stack:
            yield f"<li class=layer>{_safe(here)}</li>"
        stack = here
        if part == tape.end:
            yield "<li class=end>here the gradient ends</li>"
        yield _row(tape, part, own or part.name, most)


def _row(tape: Tape, part: Part, name: str, most: int) -> str:
    ops = "".join(
        f"<span class={state}>{_safe(op)}{f' ×{many}' if many > 1 else ''}{f' {kib(kept)}' if kept else ''}</span>"
        for op, state, many, kept in chips(part)
    )
    ops += "".join(_array(a, a.name) for a in part.arrays)
    ops += "".join(f"<div class=cut>✂ {_safe(said)}</div>" for said in told(tape, part))
    kept = f"<span class='kept{'' if part.kept else ' no'}'><i style='width:{100 * part.kept / most:.0f}%'></i>{kib(part.kept)}</span>"
    return f"<li class={part.state}><span>{_safe(name)}</span><span class=ops>{ops}</span>{kept if part.state == TAPED else '<span></span>'}</li>\n"


def _array(array: Array, name: str) -> str:
    gradient = "no gradient" if array.gradient is None else f"largest gradient {array.gradient:.2g}"
    return (
        f"<span class=array title='{_safe(array.key)}: {gradient}'>{_safe(name)} {_safe(shape_of(array.shape))}</span>"
    )
