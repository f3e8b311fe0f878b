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
  "grid.show": "Show",
  "grid.accuracy": "test accuracy",
  "grid.loss": "last loss",
  "grid.time": "training time",
  "grid.caption": "Optimizers by learning rates: {what}",
  "grid.hint":
    "{ended} of {all} runs have a value. Several runs in a cell are shown by their mean; a click ticks them.",
  "parallel.label": "Each run as a line over its settings and results",
  "parallel.hint":
    "Drag along an axis to keep the runs that pass there; click the axis to show all again. A click on a line ticks its run.",
  "parallel.optimizer": "optimizer",
  "parallel.rate": "learning rate",
  "parallel.batch_size": "batch size",
  "parallel.epochs": "epochs",
  "parallel.seed": "seed",
  "parallel.loss": "last loss",
  "parallel.time": "training time",
  "parallel.accuracy": "test accuracy",
  "sweep.title": "Sweep",
  "sweep.loading": "Looking at the sweep…",
  "sweep.gone": "There is no such sweep; it may have been deleted.",
  "sweep.status.queued": "queued",
  "sweep.status.running": "running",
  "sweep.status.cancelling": "cancelling",
  "sweep.status.finished": "finished",
  "sweep.status.cancelled": "cancelled",
  "sweep.ended.one": "{ended} of {n} run has ended",
  "sweep.ended.other": "{ended} of {n} runs have ended",
  "sweep.progress": "Progress of the sweep",
  "sweep.cancel": "Cancel the sweep",
  "sweep.table": "By configuration, best first",
  "sweep.caption": "Steps and seconds: until the validation accuracy first reached {target}.",
  "sweep.column.label": "configuration",
  "sweep.column.accuracy": "test accuracy",
  "sweep.column.loss": "last loss",
  "sweep.column.steps": "steps to target",
  "sweep.column.seconds": "time to target",
  "sweep.column.verdict": "verdict",
  "sweep.best": "best",

  // --- new (new.js) ---

  // --- rate (rate.js) ---

  // --- run (run.js, evaluation.js) ---

  // --- draw (draw.js) ---

  // --- explain (explain.js, valley.js) ---
};
