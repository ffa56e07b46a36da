"""The style sheet of the report: system fonts, light and dark, and print."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2430; --soft: #5b6675; --rule: #dfe4ea; --panel: #f6f8fa;
  --one: #2458c5; --two: #b4540a; --three: #2b7a4b; --bar: #b9c6dc;
  --red: #a61b29; --red-panel: #fdecee; --amber: #7a5200; --amber-panel: #fff6e0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181f; --ink: #e6eaf0; --soft: #9aa6b6; --rule: #2d3642; --panel: #1b212a;
    --one: #8ab0ff; --two: #f2a65a; --three: #7fce9f; --bar: #46566f;
    --red: #ff98a2; --red-panel: #3a1a1f; --amber: #f3cd78; --amber-panel: #33290f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
  gap: 1rem; margin: 1.5rem 0; }
.card { background: var(--panel); border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem 1.2rem; }
.card .value { font-size: 1.6rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card p { margin: .15rem 0; }
.notice { border-left: 4px solid var(--amber); background: var(--amber-panel); border-radius: .3rem;
  padding: .8rem 1.1rem; margin: 1rem 0; }
.notice strong { color: var(--amber); }
.notice.severe { border-color: var(--red); background: var(--red-panel); }
.notice.severe strong { color: var(--red); font-size: 1.1rem; }
.notice p { margin: .2rem 0 0; }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .6rem 1.5rem; margin: 1rem 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 42rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
caption { text-align: left; color: var(--soft); padding: .2rem 0 .5rem; }
th, td { padding: .42rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
tbody th span { display: block; color: var(--soft); font-weight: 400; font-size: .85rem; }
tr.ours { background: var(--panel); }
td.best { font-weight: 700; }
td.text { text-align: left; overflow-wrap: anywhere; }
.bars { display: block; width: 100%; min-width: 4.5rem; height: 8px; margin-top: .35rem; }
.bar { fill: var(--bar); } .bar.best { fill: var(--one); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .line.s0 { stroke: var(--one); }
.chart .line.s1 { stroke: var(--two); stroke-dasharray: 7 4; }
.chart .line.s2 { stroke: var(--three); stroke-dasharray: 2 3; }
.chart .dot.s0 { fill: var(--one); } .chart .dot.s1 { fill: var(--two); }
.chart .dot.s2 { fill: var(--three); }
.chart .limit { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 3 4; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .7rem; } }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, .card, .notice, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .charts { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
