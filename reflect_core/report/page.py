"""A run as one HTML file: the way to the answer, the whole tree, and every candidate with its checks.

Nothing is loaded from anywhere, no script runs, and every text is escaped: prompts and reflections come
from people and language models. It follows the reader's light or dark setting and reads on a phone;
only the tree scrolls sideways, in a box of its own.
"""

from __future__ import annotations

import html

from ..search.header import Header
from ..search.run import Candidate, Run
from ..text import readable
from ..types import Check
from .audit import Comparison, audit_of, audit_words, compare, comparison_words
from .layout import lay_out
from .scatter import scatter_svg
from .svg import data_url, tree_svg
from .words import outcome, setting, spent

LARGE = 512
"""Pictures in the cards are at most this large; the record keeps them whole."""

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --card: #fff; --ink: #202226; --note: #686c75;
  --rule: #d3d6db; --told: #2454be; --good: #168846; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --card: #1e2126; --ink: #e6e7ea;
  --note: #9ea3ad; --rule: #3b4048; --told: #8fb2ff; --good: #4cc07f; --bad: #ef8078; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 20px 16px 48px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2em 0 .7em; }
p { margin: .15em 0; }
.note { color: var(--note); } .told { color: var(--told); } .accepted { color: var(--good); }
.bad { color: var(--bad); }
.way-row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; }
.way-row figure { margin: 0; width: 150px; }
.way-row .arrow { align-self: flex-start; width: 120px; padding-top: 50px; text-align: center; font-size: .9rem; }
.way-row .arrow::after { content: "\\2192"; display: block; color: var(--good); font-size: 1.6rem; line-height: 1; }
img { display: block; width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 4px; }
img.crisp, .tree.crisp image { image-rendering: pixelated; }
img.good { border: 2px solid var(--good); }
figcaption { font-size: .9rem; margin-top: 4px; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; background: var(--card); }
.tree { display: block; font-family: inherit; margin: 14px 4px 4px; }
.tree text { font-size: 13px; fill: var(--ink); } .tree .note { fill: var(--note); font-size: 12px; }
.tree .small { font-size: 11px; } .tree .told { fill: var(--told); }
.tree .score { font-size: 14px; } .tree .score.accepted { fill: var(--good); }
.tree .link { fill: none; stroke: var(--rule); stroke-width: 2; }
.tree .way { fill: none; stroke: var(--good); stroke-width: 3; }
.tree .tip { stroke: none; fill: var(--rule); } .tree .way.tip { fill: var(--good); }
.tree .frame { fill: none; stroke: var(--rule); } .tree .frame.chosen { stroke: var(--told); }
.tree .frame.accepted { stroke: var(--good); }
.tree .disc { fill: var(--good); stroke: var(--card); stroke-width: 2; }
.tree .tick { fill: none; stroke: var(--card); stroke-width: 2.4; }
.audit { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; margin-top: .6em; }
.audit .scroll { max-width: 100%; }
.scatter text { font-size: 12px; fill: var(--note); } .scatter .area { fill: var(--card); stroke: var(--rule); }
.scatter .dot { fill: var(--note); fill-opacity: .55; } .scatter .dot.chosen { fill: var(--told); fill-opacity: 1; }
table { border-collapse: collapse; font-size: .9rem; } th { font-weight: 600; }
th, td { padding: 5px 14px; text-align: right; font-variant-numeric: tabular-nums; }
tr + tr { border-top: 1px solid var(--rule); }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.card { display: grid; grid-template-columns: 112px 1fr; gap: 12px; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; padding: 12px; font-size: .9rem; overflow-wrap: anywhere; }
.card:target { outline: 3px solid var(--told); }
.card ul { list-style: none; margin: 6px 0 0; padding: 0; } .card b { font-weight: 600; }
a { color: inherit; }
"""


def html_page(run: Run, *, header: Header | None = None, chosen: Candidate | None = None) -> str:
    """The page's text. `chosen` is the policy's answer; None: the run's best."""
    chosen = chosen or run.best()
    tree = tree_svg(run, lay_out(run, None if chosen is None else chosen.id))
    crisp = max(run.request.width, run.request.height) <= 128
    audited = compare(run, chosen)
    sections = [_head(run, header, chosen, audited)]
    if chosen is not None:
        sections.append(_way(run, chosen, crisp))
    if audited is not None:
        sections.append(_audited(audited))
    if run.candidates:
        tree = tree.replace('class="tree"', 'class="tree crisp"', 1) if crisp else tree
        cards = "\n".join(_card(run, candidate, crisp) for candidate in run.candidates)
        sections += [f'<h2>All candidates, round by round</h2>\n<div class="scroll">{tree}</div>',
                     f'<h2>What the judge saw</h2>\n<div class="cards">\n{cards}\n</div>']
    body = "\n".join(sections)
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(run.prompt)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n")


def escape(text: str) -> str:
    return html.escape(readable(text))


def _head(run: Run, header: Header | None, chosen: Candidate | None, audited: Comparison | None) -> str:
    kind = "accepted" if chosen is not None and chosen.accepted else "note"
    told = "" if audited is None else f"<p>{escape(comparison_words(audited))}</p>\n"
    return (f'<h1>{escape(run.prompt)}</h1>\n<p class="{kind}">{escape(outcome(run, chosen))}</p>\n{told}'
            f'<p class="note">{escape(spent(run))}</p>\n<p class="note">{escape(setting(run, header))}</p>')


def _way(run: Run, chosen: Candidate, crisp: bool) -> str:
    """The chosen candidate's ancestors, with what was said between them."""
    parts = []
    for candidate in run.lineage(chosen.id):
        if parts:
            parts.append(f'<div class="arrow told">{escape(_words_between(run, candidate))}</div>')
        parts.append(f"<figure>{_image(run, candidate, crisp)}<figcaption>{_score(candidate)}</figcaption></figure>")
    return f'<h2>How the answer came about</h2>\n<div class="way-row">{"".join(parts)}</div>'


def _words_between(run: Run, child: Candidate) -> str:
    """What made a child of its parent: the reflection, a rewritten prompt, or another noise alone."""
    said = "; ".join(p.feedback for p in child.request.context if p.feedback.strip())
    if said:
        return said
    return "no words" if child.request.prompt == run.candidate(child.parent).request.prompt else "a new prompt"


def _audited(audited: Comparison) -> str:
    """What a second judge, who had no say, thought of the judge's best as the run went on."""
    rows = "".join(f'<tr><td>{at.pictures}</td><td><a href="#c{at.best.candidate}">{at.best.candidate}</a></td>'
                   f"<td>{at.best.judge:.2f}</td><td>{at.best.audit:.2f}</td><td>{at.most:.2f}</td></tr>"
                   for at in audited.course)
    names = ("pictures", "judge's best", "judge", "its audit", "best audit so far")
    head = "".join(f"<th>{name}</th>" for name in names)
    return ('<h2>Judge and audit</h2>\n<p class="note">A second judge scored every picture and decided nothing. A dot '
            "is a picture, a row one that became the judge's best.</p>\n"
            f'<div class="audit">{scatter_svg(audited)}\n'
            f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div></div>')


def _card(run: Run, candidate: Candidate, crisp: bool) -> str:
    lines = [f"<p>{_score(candidate)}</p>"]
    for pair in candidate.request.context:
        of = "" if pair.candidate is None else f' <a href="#c{pair.candidate}">candidate {pair.candidate}</a>'
        lines.append(f'<p class="told">{escape(pair.feedback) or "no words"}</p><p class="note">said of{of}</p>')
    lines += [f'<p class="note">{escape(note)}</p>' for note in candidate.notes]
    if candidate.request.original_prompt is not None:
        lines.append(f'<p class="note">prompt: {escape(candidate.request.prompt)}</p>')
    if candidate.verdict is not None:
        lines.append(f"<ul>{''.join(_check(check) for check in candidate.verdict.checks)}</ul>")
        if not candidate.verdict.checks and candidate.verdict.reason:
            lines.append(f"<p>{escape(candidate.verdict.reason)}</p>")
    audit = audit_of(candidate.verdict)
    if audit is not None:
        said = f"{'accepted' if audit.accepted else 'not accepted'} {audit.reason}" if audit.judged else audit.reason
        lines.append(f'<p class="note">{escape(f"{audit_words(candidate.verdict)}, {said}")}</p>')
        lines.append(f"<ul>{''.join(_check(check) for check in audit.checks)}</ul>" if audit.checks else "")
    for verdict in run.verdicts(candidate.id)[1:]:
        word = "accepted" if verdict.accepted else "not accepted"
        lines.append(f'<p class="note">judged again: score {verdict.score:.2f}, {word} {escape(verdict.reason)}</p>')
    lines.append(f'<p class="note">seed {candidate.request.seed}</p>')
    return (f'<div class="card" id="c{candidate.id}"><div>{_image(run, candidate, crisp)}</div>'
            f"<div>{''.join(lines)}</div></div>")


def _check(check: Check) -> str:
    kind, mark = ("accepted", "&#10003;") if check.passed else ("bad", "&#10007;")
    note = f' <span class="note">{escape(check.note)}</span>' if check.note and not check.passed else ""
    return f'<li><span class="{kind}">{mark}</span> {escape(check.target)}{note}</li>'


def _image(run: Run, candidate: Candidate, crisp: bool) -> str:
    kinds = " ".join(k for k, on in (("crisp", crisp), ("good", candidate.accepted)) if on)
    return f'<img class="{kinds}" alt="candidate {candidate.id}" src="{data_url(run.picture(candidate.id), LARGE)}">'


def _score(candidate: Candidate) -> str:
    where = "from noise" if candidate.round == 0 else f"round {candidate.round}"
    if not candidate.judged:
        return f'<b>{candidate.id}</b> <span class="note">{where}, not judged</span>'
    word = ' <span class="accepted">accepted</span>' if candidate.accepted else ""
    audit = audit_words(candidate.verdict)
    beside = f'<br><span class="note">{audit}</span>' if audit else ""
    return f'<b>{candidate.id}</b> <span class="note">{where}</span><br>score {candidate.score:.2f}{word}{beside}'
