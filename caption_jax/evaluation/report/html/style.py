"""The report's style sheet: light and dark, wide and narrow, on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --well: #e9ebef; --line: #dcdfe5;
  --ink: #1b1f27; --pale: #5a6270; --blue: #1f5fa8; --orange: #b85505;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #13161b; --card: #1c2027; --well: #0d0f13; --line: #333a45;
    --ink: #e9ebef; --pale: #a3acba; --blue: #7db4f0; --orange: #f2a45c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
main { padding-bottom: 4rem; }
h1 { margin: 0; font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; overflow-wrap: anywhere; }
h2 { margin: 0 0 .15rem; font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 0; font-size: 1rem; line-height: 1.35; }
p, ul, dl, figure { margin: 0; }
small, .note, .facts, .kicker { color: var(--pale); }
.kicker { margin-bottom: .3rem; font-size: .8rem; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; }
.facts { margin-top: .5rem; }
.note { font-size: .9rem; }
section { margin-top: 3rem; min-width: 0; }
section > .note { margin-bottom: 1rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin-top: 1.75rem; }
.tile, .card, .chart { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; }
.tile { padding: .9rem 1.1rem; }
.tile h2 { color: var(--pale); font-size: .9rem; font-weight: 600; }
.tile .value { display: block; font-size: 2rem; font-weight: 650; line-height: 1.2; color: var(--blue); }
.number, .value, .tile .note, .scores { font-variant-numeric: tabular-nums; }

table {
  width: 100%; border-collapse: separate; border-spacing: 0; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
}
th, td { padding: .5rem .9rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--pale); font-size: .8rem; font-weight: 600; background: var(--card); }
tbody th { width: 48%; font-weight: 600; }
tbody th small { display: block; font-weight: 400; line-height: 1.35; }
.number { text-align: right; white-space: nowrap; }
.range { white-space: nowrap; }
.absent { color: var(--pale); font-size: .9rem; overflow-wrap: anywhere; }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); gap: 1.1rem; }
.cards .card { display: flex; flex-direction: column; overflow: hidden; }
.cards .card > * { margin: 0 1rem; }
.cards .card > img {
  width: 100%; height: auto; aspect-ratio: var(--shape); margin: 0 0 .8rem;
  object-fit: contain; background: var(--well);
}
.cards ul { padding: 0 0 .8rem 1.05rem; color: var(--pale); font-size: .875rem; line-height: 1.4; }
.label { padding-top: .5rem; font-size: .8rem; font-weight: 600; color: var(--pale); }
.cards h3, .cards li { overflow-wrap: anywhere; }
.scores { display: flex; flex-wrap: wrap; gap: .1rem .9rem; padding-top: .4rem; font-size: .8rem; color: var(--pale); }
.scores b { color: var(--blue); }
.cards .id { margin-top: auto; padding-bottom: .8rem; color: var(--pale); font-size: .75rem; overflow-wrap: anywhere; }

section > .card { padding: 1rem 1.1rem; margin-top: 1rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .7rem; margin-top: .7rem; }
.strip img { display: block; width: 100%; height: auto; border-radius: .35rem; }
.strip figcaption { margin-top: .2rem; font-size: .85rem; text-align: center; overflow-wrap: anywhere; }

.chart { padding: 1rem; margin-bottom: 1rem; }
.chart figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.chart small { font-weight: 400; }
.chart svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
.legend { margin-left: .9rem; font-size: .85rem; color: var(--pale); }
.key { display: inline-block; width: 1.1rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
svg text { font-size: 12px; fill: var(--pale); }
svg .grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.line.train { stroke: var(--blue); }
.line.raw { stroke: var(--blue); stroke-width: 1; opacity: .35; }
.line.val { stroke: var(--orange); }
.mark.val { fill: var(--orange); }
.key.train { background: var(--blue); }
.key.val { background: var(--orange); }

dl { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .45rem 1.25rem; }
dt { color: var(--pale); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
  table { font-size: .9rem; }
  th, td { padding: .45rem .5rem; }
  svg text { font-size: 17px; }
  .tile { padding: .8rem .9rem; }
  .strip { grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr)); }
  .cards {
    grid: auto / auto-flow 82%; margin: 0 -1.25rem; padding: 0 1.25rem .8rem;
    overflow-x: auto; scroll-snap-type: x mandatory; scroll-padding: 1.25rem;
  }
  .cards .card { scroll-snap-align: start; }
}
@media print {
  .card, .tile, .chart, tr { break-inside: avoid; }
}
"""
