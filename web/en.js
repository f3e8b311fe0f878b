// The page's words in English. zh.js has the same keys; each section belongs to the module of its name.

export default {
  // --- frame (main.js, text.js, chart.js) ---
  "title.runs": "Runs",
  "title.new": "New",
  "title.run": "Run",
  "title.rate": "Find a rate",
  "title.draw": "Draw a digit",
  "title.explain": "Explain",
  "frame.nav": "Views",
  "frame.skip": "To the content",
  "frame.api": "REST API",
  "frame.theme": "Light or dark",
  "frame.other_language": "中文",
  "frame.offline":
    "The server cannot be reached. What you see may be old; it goes on by itself when the server is back.",
  "key.title": "This server needs a key",
  "key.text": "Whoever runs it makes one with: descent keys create NAME. It is kept until you close this tab.",
  "key.label": "Key",
  "key.enter": "Enter",
  "time.s": "{s} s",
  "time.min": "{min} min {s} s",
  "time.h": "{h} h {min} min",
  "chart.missing":
    "The charts need plotly, which this server was installed without (pip install descent[ui]). The tables show the same numbers.",
  "chart.failed": "The charts could not be loaded. The tables show the same numbers.",
  "plotly.Autoscale": "Autoscale",
  "plotly.Reset axes": "Reset axes",
  "plotly.Download plot as a PNG": "Download plot as a PNG",
  "plotly.Pan": "Pan",
  "plotly.Zoom": "Zoom",
  "plotly.Zoom in": "Zoom in",
  "plotly.Zoom out": "Zoom out",
  "plotly.Double-click to zoom back out": "Double-click to zoom back out",

  // --- what several views say ---
  "status.queued": "queued",
  "status.running": "running",
  "status.pausing": "pausing",
  "status.paused": "paused",
  "status.cancelling": "cancelling",
  "status.succeeded": "succeeded",
  "status.failed": "failed",
  "status.cancelled": "cancelled",
  "verdict.good": "good",
  "verdict.too_slow": "too slow",
  "verdict.oscillating": "oscillating",
  "verdict.diverged": "diverged",
  "axis.step": "step",
  "axis.epoch": "epoch",
  "axis.time": "seconds of training",
  "axis.loss": "loss",
  "axis.accuracy": "accuracy",
  "axis.rate": "learning rate",

  // --- runs (runs.js, table.js, curves.js) ---

  // --- sweep (sweep.js, grid.js, parallel.js) ---

  // --- new (new.js) ---

  // --- rate (rate.js) ---

  // --- run (run.js, evaluation.js) ---

  // --- draw (draw.js) ---

  // --- explain (explain.js, valley.js) ---
};
