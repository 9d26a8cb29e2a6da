"""The shell of a report page: one file, style inside, no script, nothing requested from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fafaf8; --card: #ffffff; --ink: #1d2126; --soft: #59626d; --rule: #dfe2e5; --accent: #1f5f8b;
  --right: #17784a; --wrong: #b5352a; --note: #8a5a00; --grey: #e6e8eb;
  --s0: #1f6fb2; --s1: #c2571a; --s2: #2d8659; --s3: #7b52a6; --s4: #6b7078;
  --s5: #b03a72; --s6: #857200; --s7: #0b7f8c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #a3acb5; --rule: #33393f; --accent: #7db8e0;
    --right: #5cc48f; --wrong: #f08478; --note: #e0b060; --grey: #2c3238;
    --s0: #6fb3ea; --s1: #f09a5e; --s2: #6cc79a; --s3: #bd9ae3; --s4: #a9b0b8;
    --s5: #ec8ab8; --s6: #d2c04e; --s7: #5cc9d6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; overflow-wrap: break-word; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 32px); }
header { padding-top: 40px; }
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px;
     overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em; margin: 56px 0 4px; padding-top: 20px;
     border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; }
.lead { color: var(--soft); }
.over { font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--soft); margin: 0 0 8px; }
a { color: var(--accent); text-underline-offset: 3px; }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 3px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 18px 0 0;
         font-size: .92rem; }
nav a { display: inline-block; padding: 4px 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .86em; }
code { overflow-wrap: anywhere; }
.notes { border-left: 3px solid var(--note); padding: 2px 0 2px 14px; margin: 20px 0 0; }
.notes p { margin: 4px 0; }
.empty { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 16px;
         margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 18px 20px; min-width: 0; }
.card h3 { margin: 0; overflow-wrap: anywhere; }
.card .sub { color: var(--soft); font-size: .86rem; margin: 0 0 14px; overflow-wrap: anywhere; }
dl { margin: 0; }
.numbers { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px 8px; font-variant-numeric: tabular-nums; }
.numbers div { grid-column: span 2; }
.numbers div.big { grid-column: span 3; }
.numbers dt { font-size: .8rem; color: var(--soft); }
.numbers dd { margin: 0; font-size: 1.06rem; font-weight: 600; }
.numbers dd .unit { font-size: .8em; }
.numbers .big dd .unit { font-size: .55em; }
.numbers .big dd { font-size: 2rem; line-height: 1.15; letter-spacing: -.02em; }
.unit { font-weight: 400; color: var(--soft); margin-left: .15em; letter-spacing: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px;
          margin-top: 20px; }
figure { margin: 0; min-width: 0; }
.charts figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 8px; }
.charts figcaption span { display: block; font-weight: 400; font-size: .84rem; color: var(--soft); }
.chart { display: block; width: 100%; max-width: 560px; height: auto; }
.chart text { font-size: 13px; fill: var(--soft); font-family: inherit; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: butt; }
.band { opacity: .16; }
path.s0 { stroke: var(--s0); } .band.s0, .dot.s0 { fill: var(--s0); }
path.s1 { stroke: var(--s1); } .band.s1, .dot.s1 { fill: var(--s1); }
path.s2 { stroke: var(--s2); } .band.s2, .dot.s2 { fill: var(--s2); }
path.s3 { stroke: var(--s3); } .band.s3, .dot.s3 { fill: var(--s3); }
path.s4 { stroke: var(--s4); } .band.s4, .dot.s4 { fill: var(--s4); }
path.s5 { stroke: var(--s5); } .band.s5, .dot.s5 { fill: var(--s5); }
path.s6 { stroke: var(--s6); } .band.s6, .dot.s6 { fill: var(--s6); }
path.s7 { stroke: var(--s7); } .band.s7, .dot.s7 { fill: var(--s7); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0 0 0 4px; margin: 6px 0 0;
          font-size: .84rem; color: var(--soft); }
.legend li { min-width: 0; overflow-wrap: anywhere; }
.legend svg { vertical-align: middle; margin-right: 6px; }
.ranks { display: grid; grid-template-columns: 84px 1fr; gap: 0 20px; padding: 14px 0;
         border-top: 1px solid var(--rule); }
.ranks:first-of-type { border-top: 0; }
.ranks figcaption { grid-column: 1 / -1; font-size: .86rem; color: var(--soft); margin-bottom: 8px;
                    overflow-wrap: anywhere; }
.ranks figcaption b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.ranks ol { list-style: none; margin: 0; padding: 0 0 0 20px; border-left: 1px solid var(--rule); min-width: 0;
            display: grid; grid-template-columns: repeat(10, minmax(0, 1fr)); gap: 10px; }
.crop { position: relative; display: block; border: 3px solid var(--soft); border-radius: 5px;
        background: var(--grey); overflow: hidden; }
.crop img { display: block; width: 100%; aspect-ratio: 1 / 2; object-fit: contain; }
.crop .gone { display: grid; aspect-ratio: 1 / 2; place-content: center; text-align: center; padding: 2px;
              font-size: .72rem; line-height: 1.25; color: var(--soft); }
.right .crop { border-color: var(--right); }
.wrong .crop { border-color: var(--wrong); border-style: dashed; }
.mark { position: absolute; right: 2px; bottom: 2px; width: 18px; height: 18px; border-radius: 50%; stroke: var(--card);
        stroke-width: 2.2; fill: none; stroke-linecap: round; stroke-linejoin: round; }
.right .mark { background: var(--right); } .wrong .mark { background: var(--wrong); }
.under { display: block; font-size: .76rem; line-height: 1.35; margin-top: 4px; font-variant-numeric: tabular-nums; }
.under span { display: block; color: var(--soft); }
.people { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px;
          margin-top: 16px; }
.keys { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; max-width: 80ch; font-size: .92rem; }
.keys dd { margin: 0; color: var(--soft); }
:is(.person, .posture, .matches) figcaption { font-size: .86rem; color: var(--soft); overflow-wrap: anywhere; }
:is(.person, .matches) figcaption { margin-bottom: 12px; }
.panels { list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: repeat(4, minmax(0, 1fr));
          gap: 10px; }
.panels img, .pair img, .posture img { display: block; width: 100%; height: auto; border-radius: 4px; }
.bars { list-style: none; margin: 14px 0 0; padding: 0; columns: 2; column-gap: 24px; font-size: .76rem;
        font-variant-numeric: tabular-nums; }
.bars li { display: grid; grid-template-columns: 22px 1fr 30px; gap: 8px; align-items: center; padding-bottom: 4px;
           break-inside: avoid; }
.bars li > span:last-child { text-align: right; color: var(--soft); }
.track { height: 9px; background: var(--grey); border-radius: 2px; overflow: hidden; }
.track i { display: block; height: 100%; }
.part { display: inline-grid; place-content: center; width: 22px; height: 22px; border-radius: 50%; font-size: 12px;
        line-height: 1; font-weight: 600; color: #fff; text-shadow: 0 0 2px #000, 0 0 2px #000, 0 0 1px #000; }
.posture { display: flex; flex-wrap: wrap; gap: 16px 24px; }
.posture img { width: 160px; }
.posture figcaption { flex: 1 1 240px; max-width: 60ch; }
.matches { margin-top: 16px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 24px 36px; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) 156px; gap: 10px 16px; align-items: start; }
.answer { grid-column: 1 / -1; margin: 0; font-size: .86rem; overflow-wrap: anywhere; }
.right .answer b { color: var(--right); } .wrong .answer b { color: var(--wrong); }
.pair table { font-size: .8rem; }
.pair table.values :is(th, td) { padding: 3px 0; text-align: right; vertical-align: middle; min-width: 0; }
.pair table.values th:first-child { text-align: left; }
.pair table.values .sum > * { border-top: 1px solid var(--soft); font-weight: 600; }
.chip { display: inline-block; width: 18px; height: 9px; margin-right: 6px; border-radius: 2px; }
@media (max-width: 860px) { .ranks ol { grid-template-columns: repeat(5, minmax(0, 1fr)); } }
@media (max-width: 520px) {
  header { padding-top: 24px; }
  .ranks { grid-template-columns: 62px 1fr; gap: 0 12px; }
  .ranks ol { padding-left: 12px; gap: 10px 6px; }
  .under { font-size: .72rem; }
  .mark { width: 15px; height: 15px; right: 1px; bottom: 1px; }
  .card { padding: 16px 14px; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .chart text { font-size: 17px; }
  h2 { margin-top: 40px; }
}
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: 7px 16px 7px 0; border-bottom: 1px solid var(--rule);
         overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); width: 34%; min-width: 8em; }
caption { text-align: left; font-weight: 600; font-size: .95rem; padding-bottom: 8px; }
.values { font-variant-numeric: tabular-nums; }
.values :is(td, th[scope=row]) { white-space: nowrap; }
.values :is(th, td) { padding-right: 10px; }
.values th { width: auto; min-width: 0; }
.values th[scope=col] { min-width: 4.6em; }
.values tbody tr:last-child > * { border-bottom: 0; }
details { border: 1px solid var(--rule); border-radius: 8px; background: var(--card); margin-top: 14px; }
summary { cursor: pointer; padding: 12px 18px; font-weight: 600; overflow-wrap: anywhere; }
details > div { padding: 0 18px 14px; }
details.group { border: 0; border-radius: 0; background: none; }
.group summary { padding: 8px 0; color: var(--soft); font-size: .94rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; }
footer { color: var(--soft); font-size: .84rem; margin-top: 64px; padding-bottom: 40px; }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --grey: #eee; color-scheme: light;
          --right: #17784a; --wrong: #b5352a;
          --s0: #1f6fb2; --s1: #c2571a; --s2: #2d8659; --s3: #7b52a6; --s4: #6b7078;
          --s5: #b03a72; --s6: #857200; --s7: #0b7f8c; }
  body { font-size: 11pt; } nav { display: none; }
  figure, .card, tr { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
  .mark, .crop, .part, .track, .track i, .chip { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .ranks ol { grid-template-columns: repeat(10, minmax(0, 1fr)); }
}
"""


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """A whole page.

    Args:
        title: Text of the browser's tab; escaped here.
        header: HTML of the top.
        sections: (id, heading, HTML) of each section; those without HTML are left out.
        footer: HTML of the bottom.
    """
    shown = [(anchor, heading, body) for anchor, heading, body in sections if body]
    links = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in shown)
    bodies = "\n".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>{body}</section>'
        for anchor, heading, body in shown
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>{header}<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{bodies}
</main>
<footer>{footer}</footer>
</body>
</html>
"""
