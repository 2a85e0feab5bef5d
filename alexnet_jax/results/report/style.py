"""The style sheet of a report."""

STYLE = """
:root {
  --paper: #fbfbfa; --card: #ffffff; --ink: #1f2933; --faint: #5d6875; --rule: #dde1e6;
  --good: #2f855a; --bad: #c2412d; --unsure: #8a6100;
  --c0: #3d4852; --c1: #c2412d; --c2: #2b6cb0; --c3: #2f855a; --c4: #8a4fbf; --c5: #b7791f;
  --c6: #0f8b8d; --c7: #d1477e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1c2229; --ink: #e4e8ec; --faint: #9aa5b1; --rule: #343d47;
    --good: #68d391; --bad: #fc8f7a; --unsure: #ecc35e;
    --c0: #cbd5e0; --c1: #fc8f7a; --c2: #74b3f0; --c3: #68d391; --c4: #c8a2f0; --c5: #ecc35e;
    --c6: #5fd4d6; --c7: #f78fb8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 1rem; margin: 1rem 0; }
p { margin: .5rem 0; max-width: 50rem; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
code { font-size: .85em; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
thead th { color: var(--faint); font-weight: 500; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; font-weight: 500; }
.verdict { font-size: .85rem; font-weight: 400; white-space: normal; max-width: 17rem; }
.confirmed { color: var(--good); } .contradicted { color: var(--bad); }
.not-confirmed, .consistent, .cannot-tell { color: var(--unsure); }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .5em; background: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
svg { display: block; width: 100%; min-width: 20rem; max-width: 42rem; height: auto; }
svg text { fill: var(--faint); font-size: 12px; }
svg text.name { fill: var(--ink); }
svg polyline { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg polyline.thin { stroke-width: .8; opacity: .45; }
svg polyline.dashed { stroke-dasharray: 6 4; }
svg .rule { stroke: var(--rule); } svg .axis { stroke: var(--faint); }
svg .level { stroke: var(--faint); stroke-dasharray: 4 4; }
svg .interval { stroke: var(--c); stroke-width: 7; opacity: .4; }
svg .interval.images { stroke-width: 2; opacity: 1; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
svg .published { fill: var(--card); stroke: var(--ink); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: .5rem 0; font-size: .9rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; min-width: 0; }
details { border-top: 1px solid var(--rule); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 500; }
img.filters { max-width: min(100%, 48rem); border-radius: 6px; margin-top: .25rem; }
.confusion td { text-align: center; padding: .25rem .4rem; min-width: 2.2rem; }
.confusion td { background: color-mix(in srgb, var(--c) var(--p), transparent); }
.confusion .hit { --c: color-mix(in srgb, var(--good) 55%, transparent); } .confusion .miss {
  --c: var(--bad); }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: .75rem; list-style: none; padding: 0; margin: 0; font-size: .85rem; }
.mistakes img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block; }
@media (max-width: 40rem) {
  body { padding: .5rem; font-size: 15px; }
  section { padding: .75rem; }
  th, td { padding: .3rem .45rem; }
  .verdict { max-width: 10rem; }
  svg text { font-size: 15px; }
}
"""
