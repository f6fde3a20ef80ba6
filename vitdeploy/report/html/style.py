"""The looks of the report page: one style sheet, light and dark, from a phone to a wide screen."""

from __future__ import annotations

from vitdeploy.core.precisions import FORMS

__all__ = ["CSS"]

_CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2129; --soft: #5b6472; --faint: #8a93a1; --line: #e4e2dd;
  --wash: #f3f1ec;
  --accent: #0f766e; --accent-wash: #e3f2ef; --good: #15803d; --bad: #c2410c; --warn-wash: #fdf3df; --warn:
  #8a5a00;
  --baseline: #6b7280; --own: var(--baseline); --compile: #a8456b;
  --gain: 21,128,61; --loss: 194,65,12;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #e8eaee; --soft: #a8b0bd; --faint: #7c8695; --line: #2d323b;
    --wash: #22262d;
    --accent: #4fd1c0; --accent-wash: #17302e; --good: #5ed58a; --bad: #ff9966; --warn-wash: #33290f; --warn:
    #f0c468;
    --baseline: #9ca3af; --compile: #f08bb0;
    --gain: 94,213,138; --loss: 255,140,90;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
header .over {
  margin: 0; color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: .08em; text-transform:
  uppercase;
}
h1 {
  margin: 6px 0 0; font-size: clamp(26px, 4.6vw, 38px); line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere;
}
.lead { margin: 16px 0 0; max-width: 68ch; font-size: clamp(17px, 2.2vw, 20px); line-height: 1.5; }
.facts {
  display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 16px 0 0; padding: 0; list-style: none; color:
  var(--soft); font-size: 14px;
}
h2 { margin: 48px 0 4px; font-size: 21px; line-height: 1.25; letter-spacing: -.01em; }
h2 + p { margin: 0 0 14px; max-width: 72ch; color: var(--soft); font-size: 15px; }
.numbers {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 28px 0 0;
}
.number {
  padding: 16px 18px 14px; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
.number b {
  display: block; font-size: 28px; line-height: 1.15; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums;
}
.number span { display: block; margin-top: 4px; color: var(--soft); font-size: 13.5px; line-height: 1.35; }
.number:first-child { background: var(--accent-wash); border-color: transparent; }
.number:first-child b { color: var(--accent); }
.banner {
  margin: 20px 0 0; padding: 12px 16px; background: var(--warn-wash); color: var(--warn); border-radius:
  10px; font-size: 14.5px;
}
.banner b { font-weight: 650; }
.banner ul { margin: 4px 0 0; padding-left: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { width: 100%; border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th {
  padding: 12px 10px 8px; color: var(--soft); font-size: 12.5px; font-weight: 600; line-height: 1.3;
  text-align: right; vertical-align: bottom; white-space: nowrap;
}
td {
  padding: 9px 10px; border-top: 1px solid var(--line); text-align: right; vertical-align: top; line-height:
  1.35; white-space: nowrap;
}
th.name, td.name { padding-left: 18px; text-align: left; }
th:last-child, td:last-child { padding-right: 18px; }
.dense th, .dense td { padding-left: 6px; padding-right: 6px; }
.dense .name { padding-left: 18px; } .dense td:last-child, .dense th:last-child { padding-right: 16px; }
td small { display: block; color: var(--faint); font-size: 12px; }
td.name b { font-weight: 600; white-space: nowrap; }
td.why { color: var(--soft); text-align: left; white-space: normal; min-width: 22ch; }
td.name, th.name { position: sticky; left: 0; background: var(--card); }
td.why div { position: sticky; left: 130px; max-width: min(70ch, calc(100vw - 210px)); overflow-wrap: anywhere; }
tr.best td { background: var(--accent-wash); }
tr.best td.name b::after {
  content: "recommended"; margin-left: 8px; padding: 1px 7px 2px; border-radius: 9px; background:
  var(--accent); color: var(--card); font-size: 11px; font-weight: 600; vertical-align: 1px;
}
tr.off td.name { color: var(--faint); }
.tag { font-size: 12px; font-weight: 600; }
.tag.failed { color: var(--bad); }
.plot { padding: 14px 12px 10px; }
.plot svg {
  display: block; width: 100%; height: auto; font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", Arial, sans-serif; font-variant-numeric: tabular-nums;
}
svg.narrow { display: none !important; }
@media (max-width: 700px) { svg.narrow { display: block !important; } svg.wide { display: none !important; } }
.grid { stroke: var(--line); stroke-width: 1; }
.zero { stroke: var(--faint); stroke-width: 1.2; }
.tick, .axis, .value { fill: var(--soft); font-size: 12px; }
.label, .row { fill: var(--ink); font-size: 12.5px; font-weight: 550; }
.label { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.hint { fill: var(--bad); font-size: 12px; opacity: .85; }
.lost { fill: rgba(var(--loss), .08); }
.front { fill: none; stroke: var(--accent); stroke-width: 2; stroke-dasharray: 1 6; stroke-linecap: round; }
.c-baseline { --own: var(--baseline); } .c-compile { --own: var(--compile); }
.series { fill: var(--own); stroke: none; }
.series .whisker { stroke: var(--own); stroke-width: 1.6; opacity: .5; }
.series:not(.on-front) > rect, .series:not(.on-front) > circle, .series:not(.on-front) > polygon {
  fill: var(--card); stroke: var(--own); stroke-width: 2;
}
.series .dots { opacity: .28; }
.series .half rect { opacity: .35; }
.series .p50 { stroke: var(--own); stroke-width: 3; stroke-linecap: round; }
.series .p95, .series .p99 { stroke: var(--own); stroke-width: 1.6; }
.series .p99 { stroke-dasharray: 2 2.5; }
.key {
  display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 2px 8px 6px; padding: 0; list-style: none; color:
  var(--soft); font-size: 13px;
}
.key svg { display: inline-block; width: 14px; height: 14px; margin-right: 6px; vertical-align: -2px; }
.key .shape { fill: var(--soft); }
td.name .broken { display: block; max-width: 24ch; color: var(--bad); font-size: 12px; font-style: normal;
  white-space: normal; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); font-weight: 600; }
.line { fill: none; stroke: var(--own); stroke-width: 2; }
td.meter { position: relative; min-width: 118px; }
td.meter i {
  position: absolute; left: 8px; top: 9px; height: 22px; max-width: calc(100% - 16px); border-radius: 4px;
  background: var(--own); opacity: .22;
}
td.meter.loss { --own: rgb(var(--loss)); }
td.meter span { position: relative; }
td.stack, th.stack { min-width: 210px; width: 40%; }
td.stack span {
  display: flex; height: 18px; margin-top: 3px; border-radius: 4px; overflow: hidden; background: var(--wash);
}
td.stack i { display: block; height: 100%; }
.p-decode { background: #b9975b; } .p-preprocess { background: #d9822b; }
.p-model { background: var(--fp32); } .p-post { background: var(--bad); }
i.dot { display: inline-block; width: 9px; height: 9px; margin-right: 5px; border-radius: 50%; }
.flows { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 12px; }
.flow { padding: 14px 18px 12px; }
.flow h3 { margin: 0 0 8px; font-size: 14.5px; }
.flow ul { margin: 0; padding: 0; list-style: none; font-size: 13.5px; }
.flow li { display: grid; grid-template-columns: 1fr 34% 30px; gap: 10px; align-items: center; padding: 3px 0; }
.flow li span { overflow-wrap: anywhere; }
.flow li i { height: 10px; border-radius: 3px; background: var(--int8); opacity: .55; }
.flow li em { font-style: normal; text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
td.name.layer { position: static; min-width: 190px; }
td.name.layer b { white-space: normal; overflow-wrap: anywhere; font-size: 13.5px; }
.confusion td { min-width: 40px; padding: 7px 8px; font-size: 13.5px; }
.confusion td.none { color: var(--faint); }
.confusion th.up { height: 92px; padding: 8px 4px; vertical-align: bottom; }
.confusion th.up span { writing-mode: vertical-rl; transform: rotate(180deg); }
.banner summary { cursor: pointer; }
.image.bare { grid-template-columns: 1fr; }
.heat td { min-width: 76px; text-align: center; }
.heat th { text-align: center; }
.heat td.name, .heat th.name { text-align: left; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 12px; }
.image {
  display: grid; grid-template-columns: 76px 1fr; gap: 14px; padding: 14px; font-size: 13px; line-height:
  1.4;
}
.image img {
  display: block; width: 76px; height: 76px; object-fit: contain; border-radius: 6px; background:
  var(--wash); image-rendering: pixelated;
}
.image p { margin: 0 0 4px; font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
.image ul { margin: 0; padding: 0; list-style: none; }
.image .no { color: var(--faint); font-size: 12px; font-weight: 400; }
.image li { color: var(--soft); overflow-wrap: anywhere; }
.image li + li { margin-top: 5px; }
.image li b { font-weight: 600; color: var(--bad); }
.image li.right b { color: var(--good); }
.image li small { display: block; color: var(--faint); font-size: 12px; line-height: 1.35; }
.explained { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 12px; }
.explained figure { margin: 0; padding: 12px; background: #fff; }
.explained img { display: block; width: 100%; height: auto; }
.explained figcaption { margin-top: 8px; color: #5b6472; font-size: 13px; }
.method { padding: 6px 18px; }
.method div {
  display: grid; grid-template-columns: 150px 1fr; gap: 2px 18px; padding: 10px 0; font-size: 14.5px;
}
.method div + div { border-top: 1px solid var(--line); }
.method dt { color: var(--soft); }
.method dl, .method dd { margin: 0; }
.method dd { overflow-wrap: anywhere; }
@media (max-width: 560px) {
  .method div { grid-template-columns: 1fr; }
  main { padding: 28px 16px 48px; }
  h2 { margin-top: 40px; }
  tr.best td.name b::after { display: block; width: max-content; margin: 3px 0 1px; }
  .numbers { grid-template-columns: 1fr 1fr; }
  .number:last-child:nth-child(odd) { grid-column: span 2; }
  .number { padding: 13px 14px 12px; } .number b { font-size: 23px; }
  td { padding: 8px 10px; } th { padding: 10px 10px 6px; }
}
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 40px; color: var(--faint); font-size: 13px; }
@media print { body { background: #fff; } .card, .number { break-inside: avoid; } }
"""


def _colours() -> str:
    """The colour of each precision's marks."""
    colours = {spec.precision: spec.colours for spec in FORMS.values()}
    light, dark = ("".join(f" --{name}: {pair[page]};" for name, pair in colours.items()) for page in (0, 1))
    classes = " ".join(f".c-{name} {{ --own: var(--{name}); }}" for name in colours)
    return f":root {{{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}\n{classes}\n"


CSS = _CSS + _colours()
