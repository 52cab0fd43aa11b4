"""How the report looks: its frame and its style, in light and dark."""

READING = """<p class="note">Error rates: lower is better; BLEU: higher. Small figures: 95&nbsp;% interval, from
resampling utterances. A <code>#</code> names the frozen noise that was added: rates compare only under the same one.
The floor is the best constant answer that the training texts suggest: what can be had without listening or
looking.</p>"""

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{made}</p></header>
<main>{body}</main>
</body>
</html>
"""

STYLE = """
:root {
  --paper: #fdfdfb; --card: #ffffff; --ink: #1d2126; --soft: #66707b; --line: #dfe2e6;
  --accent: #3b6fd4; --wrong: #b3261e; --wrong-paper: #fbe9e7;
  --percent: 0.035rem; --sans: "Inter", "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f24; --ink: #e6e8ea; --soft: #98a2ad; --line: #323941;
    --accent: #7aa2f0; --wrong: #ff9b90; --wrong-paper: #47221f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans); }
header, main { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0; }
header p { color: var(--soft); margin: 0.35rem 0 0; font-size: 0.875rem; }
section { margin: 2.75rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 1rem; padding-bottom: 0.4rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 0.9rem; margin: 1.5rem 0 0.25rem; color: var(--soft); font-weight: 600; }
.wide { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide table { width: 100%; }
caption { text-align: left; color: var(--soft); font-size: 0.875rem; padding-bottom: 0.5rem; }
thead th { vertical-align: bottom; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.5rem 0.6rem; white-space: nowrap; font-weight: 400; }
thead th { font-weight: 600; }
.wide th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 9rem; }
thead tr, tbody tr { border-bottom: 1px solid var(--line); }
td b { font-size: 1.1rem; font-weight: 600; }
small { display: block; color: var(--soft); font-size: 0.75rem; font-weight: 400; }
thead code { display: block; }
code { font: 0.75rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
td i { display: block; height: 3px; margin: 0.3rem 0 0 auto; background: var(--accent); border-radius: 2px; }
.floor th, .floor td b { color: var(--soft); font-weight: 400; }
.floor td i { background: var(--line); }
.note { color: var(--soft); font-size: 0.875rem; max-width: 46rem; }
.plot { max-width: 100%; border-radius: 6px; background: #ffffff; }
svg { height: auto; display: block; }
.clip { margin: 0 0 1.25rem; padding: 1rem; background: var(--card); }
.clip { border: 1px solid var(--line); border-radius: 10px; }
.clip img { display: block; width: 100%; border-radius: 6px; }
figcaption { color: var(--soft); font-size: 0.75rem; margin: 0.5rem 0 0.25rem; overflow-wrap: anywhere; }
.clip th, .clip td { text-align: left; padding: 0.15rem 0; border: 0; vertical-align: baseline; }
.clip tr { border: 0; }
.clip th { color: var(--soft); font-size: 0.8rem; padding-right: 1.25rem; }
.clip td { white-space: normal; }
.clip div { display: flex; flex-wrap: wrap; gap: 0.75rem 3rem; }
.clip table { flex: 0 1 auto; min-width: 16rem; }
.clip caption { color: var(--ink); font-weight: 600; padding: 0.25rem 0 0; }
mark { background: var(--wrong-paper); color: var(--wrong); border-radius: 3px; padding: 0 0.2em; }
del { color: var(--soft); text-decoration-color: var(--wrong); }
"""
