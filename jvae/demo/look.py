"""Style and script of the page. Fonts are those of the device; nothing is fetched."""

FONT = ("system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")

CSS = """
.gradio-container { width: 100%; max-width: 64rem !important; margin: 0 auto !important; }
.jv-sentence { font-size: 1.25rem; line-height: 1.5; margin: .3rem 0; overflow-wrap: anywhere; }
.jv-note, .jv-rows th { color: var(--body-text-color) !important; opacity: .68; }
.jv-note { font-size: .86rem; margin: .3rem 0; }
.jv-rows { border-collapse: collapse; width: 100%; margin: .3rem 0; border: 0 !important; }
.jv-rows tr { border: 0 !important; }
.jv-rows th, .jv-rows td { text-align: left; vertical-align: top; overflow-wrap: anywhere;
  padding: .25rem .7rem .25rem .4rem !important; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.jv-rows th { font-weight: 400; white-space: nowrap; font-variant-numeric: tabular-nums;
  text-align: right; width: 1%; }
.jv-rows b { color: #b34700; font-weight: 600; }
.dark .jv-rows b { color: #ffab70; }
.jv-rows tr.jv-at { background: rgba(213, 94, 0, .13) !important; }
.jv-tokens { line-height: 2.1; margin: .2rem 0; }
.jv-token { display: inline-block; max-width: 100%; box-sizing: border-box; line-height: 1.4;
  padding: .12rem .32rem; border-radius: 4px; margin: 0 .1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.jv-map { width: 100%; height: auto; display: block; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
.jv-map circle { cursor: pointer; fill-opacity: .8; }
.jv-map circle:hover, .jv-map circle.jv-picked { stroke: var(--body-text-color);
  stroke-width: 2.5; }
.jv-legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin-top: .4rem;
  font-size: .86rem; }
.jv-legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .35rem; }
"""

# A click on a point of the map becomes an event with the index of its sentence.
PICK = """
element.addEventListener('click', (event) => {
  const dot = event.target.closest('circle[data-place]');
  if (!dot) return;
  element.querySelectorAll('.jv-picked').forEach((one) => one.classList.remove('jv-picked'));
  dot.classList.add('jv-picked');
  trigger('select', {place: Number(dot.dataset.place)});
});
"""
