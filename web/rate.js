// A learning-rate range test: its curve while it grows, and the rate that it suggests.

import { Problem, post, send, Unreachable } from "./api.js";
import { Chart, palette } from "./chart.js";
import { fill, h } from "./dom.js";
import { statusChip } from "./encoding.js";
import { pauseUnless } from "./patience.js";
import { failureOf, wordsOf } from "./refusal.js";
import { loss, number, said, t } from "./text.js";

const MARKS = ["rate", "steepest_rate", "least_rate", "blown_up_rate"];
const WAIT_S = 5;
const REST_MS = 400; // between two looks, however fast it changes
const AGAIN_MS = 3000;
const MOST_ROWS = 25;

export function mount(root, { id }) {
  const view = new View(id);
  fill(root, view.element);
  view.follow();
  return () => view.gone();
}

/** A rate as people say it: `0.0031`, `3.1e-7`. */
const inShort = (rate) => String(Number(rate.toPrecision(2)));

class View {
  #gone = new AbortController();
  #etag = null;
  #status = null; // as it is shown

  constructor(id) {
    this.path = `/lr-range-tests/${encodeURIComponent(id ?? "")}`;
    this.head = h("div.rate-head");
    this.state = h("div", { role: "status" }, h("p.muted", {}, t("rate.loading")));
    this.progress = h("div");
    this.answer = h("div");
    this.plot = h("div.rate-plot", { role: "img", "aria-label": t("rate.curve") });
    this.chart = new Chart(this.plot);
    this.numbers = h("div");
    this.points = h("details.new-folded", {}, h("summary", {}, t("rate.points")), h("div"));
    this.figure = h(
      "div.rate-figure",
      { hidden: true },
      h("div.card", {}, h("h2", {}, t("rate.curve")), this.chart.problem, this.plot),
      this.numbers,
    );
    this.element = h("div", {}, this.head, this.state, this.progress, this.answer, this.figure);
  }

  gone() {
    this.#gone.abort();
    this.chart.gone();
  }

  /** Look at it until it has ended: each answer comes when something has changed. */
  async follow() {
    const { signal } = this.#gone;
    while (!signal.aborted) {
      try {
        const test = await this.#look();
        if (test) this.#show(test);
        if (test?.terminal) return;
        await pause(REST_MS);
      } catch (error) {
        if (signal.aborted) return;
        if (this.#isFinal(error)) return;
        await pauseUnless(1000 * (error.retryAfterS ?? 0) || AGAIN_MS, window, "online");
      }
    }
  }

  /** The test as it is now; null where nothing has changed. */
  async #look() {
    const headers = this.#etag ? { Prefer: `wait=${WAIT_S}`, "If-None-Match": this.#etag } : {};
    const response = await send("GET", this.path, { headers, signal: this.#gone.signal, cache: "no-store" });
    if (response.status === 304) return null;
    this.#etag = response.headers.get("ETag");
    return response.json();
  }

  /** Say what went wrong; whether asking again is of no use. */
  #isFinal(error) {
    const isRefused = error instanceof Problem;
    if (!isRefused && !(error instanceof Unreachable)) throw error;
    const isUnknown = isRefused && (error.status === 404 || error.status === 422);
    const words = isUnknown ? t("rate.not_here") : wordsOf(error, "rate.unreachable");
    fill(this.state, h("p.error", {}, words));
    [this.#status, this.#etag] = [null, null]; // the next answer is whole, and all of it is said again
    return isUnknown;
  }

  #show(test) {
    this.#showStatus(test);
    this.#showProgress(test);
    this.#showAnswer(test);
    this.figure.hidden = !test.curve.step.length;
    if (this.figure.hidden) return;
    this.#showNumbers(test);
    this.chart.draw(traces(test.curve), layout(test, this.plot.clientWidth < 560));
  }

  /** What changes with the status alone; it stays as it is in between, and a button keeps its focus. */
  #showStatus({ spec, status, terminal, error }) {
    if (status === this.#status) return;
    this.#status = status;
    const { name } = spec.optimizer;
    const again = h("a.button", { href: `#/new?do=rate&optimizer=${encodeURIComponent(name)}` }, t("rate.again"));
    const action = terminal ? again : this.#cancelButton(status === "cancelling");
    fill(this.head, h("h1", {}, t("rate.title", { optimizer: name })), statusChip(status), h("span.space"), action);
    const told = {
      failed: () => h("p.error", {}, t("rate.failed", { why: error ? `${failureOf(error)} (${error.message})` : "" })),
      cancelled: () => h("p.muted", {}, t("rate.was_cancelled")),
      queued: () => h("p.card.muted", {}, t("rate.waits")),
    }[status];
    fill(this.state, told?.());
  }

  #showProgress({ status, terminal, progress }) {
    if (terminal || status === "queued") return fill(this.progress);
    const words = t("rate.progress", { done: number(progress.step), total: number(progress.total_steps) });
    const bar = h("progress", { value: progress.fraction, max: 1, "aria-label": words });
    return fill(this.progress, bar, h("p.small.muted", { "aria-hidden": "true" }, words));
  }

  #cancelButton(isCancelling) {
    const button = h("button.danger", { type: "button" });
    const say = (isAsked) => {
      fill(button, t(isAsked ? "rate.cancelling" : "rate.cancel")).disabled = isAsked;
    };
    button.onclick = async () => {
      say(true);
      try {
        await post(`${this.path.replace("/lr-range-tests/", "/jobs/")}/cancel`);
      } catch (error) {
        this.#isFinal(error);
        say(false);
      }
    };
    say(isCancelling);
    return button;
  }

  #showAnswer({ spec, status, suggestion }) {
    if (status !== "succeeded") return fill(this.answer);
    const { rate, sentence } = suggestion;
    const number =
      rate === null ? h("strong.rate-number", {}, t("rate.none")) : h("strong.rate-number", {}, inShort(rate));
    const use =
      rate !== null &&
      h("a.button.primary", { href: trainWith(spec, inShort(rate)) }, t("rate.use", { rate: inShort(rate) }));
    const said_ = h("div.rate-said", {}, h("span.small.muted", {}, t("rate.suggested")), number);
    fill(
      this.answer,
      h("div.card.rate-answer", { role: "status" }, said_, h("p.rate-sentence", {}, said(sentence)), use),
    );
  }

  #showNumbers({ id, suggestion, curve }) {
    const found = MARKS.filter((mark) => suggestion[mark] !== null);
    const rows = found.map((mark) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, t(`rate.at.${mark}`)),
        h("td.number", {}, inShort(suggestion[mark])),
        h("td.number", {}, loss(lossAt(curve, suggestion[mark]))),
      ),
    );
    const marks =
      rows.length > 0 &&
      h("table", {}, h("caption.hidden-text", {}, t("rate.table")), head(t("rate.where")), h("tbody", {}, rows));
    fill(this.points.lastChild, pointsTable(curve), note(id, curve));
    if (!this.points.isConnected) fill(this.numbers, h("div.card.rate-marks", {}), this.points);
    fill(this.numbers.firstChild, h("h2", {}, t("rate.table")), marks || h("p.muted", {}, said(suggestion.sentence)));
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Where the form of a job is filled in as the test was. */
function trainWith({ optimizer, dataset, seed }, rate) {
  const query = new URLSearchParams({ optimizer: optimizer.name, rate });
  if (dataset !== "mnist") query.set("dataset", dataset);
  if (seed) query.set("seed", seed);
  return `#/new?${query}`;
}

// --- the tables ------------------------------------------------------------------------------------------------------------

function head(first) {
  const columns = [first, t("axis.rate"), `${t("axis.loss")} (${t("rate.smoothed")})`];
  return h(
    "thead",
    {},
    h(
      "tr",
      {},
      columns.map((name, index) => h(index ? "th.number" : "th", { scope: "col" }, name)),
    ),
  );
}

/** The smoothed loss at the point nearest to a rate. */
function lossAt({ rate, smoothed }, wanted) {
  const distance = (index) => Math.abs(Math.log(rate[index] / wanted));
  const nearest = rate.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
  return smoothed[nearest];
}

const chosenRows = ({ step }) => {
  const count = Math.min(step.length, MOST_ROWS);
  return Array.from({ length: count }, (_, row) => Math.round((row * (step.length - 1)) / Math.max(count - 1, 1)));
};

function pointsTable(curve) {
  const rows = chosenRows(curve).map((index) =>
    h(
      "tr",
      {},
      h("td", {}, number(curve.step[index])),
      h("td.number", {}, curve.rate[index].toPrecision(3)),
      h("td.number", {}, loss(curve.smoothed[index])),
    ),
  );
  return h("table", {}, h("caption.hidden-text", {}, t("rate.curve")), head(t("axis.step")), h("tbody", {}, rows));
}

function note(id, { step }) {
  const shown = t("rate.points_note", { n: Math.min(step.length, MOST_ROWS), all: number(step.length) });
  const url = `/lr-range-tests/${encodeURIComponent(id)}`;
  return h("p.small.muted", {}, shown, " ", h("a", { href: url }, h("code", {}, "JSON")));
}

// --- the chart -------------------------------------------------------------------------------------------------------------

function traces({ rate, loss: raw, smoothed }) {
  const { muted, accent } = palette();
  const common = { type: "scatter", mode: "lines", x: rate };
  return [
    { ...common, y: raw, name: t("rate.raw"), opacity: 0.45, line: { color: muted, width: 1 }, hoverinfo: "skip" },
    {
      ...common,
      y: smoothed,
      name: t("rate.smoothed"),
      line: { color: accent, width: 3 },
      hovertemplate: "%{x:.2e}: %{y:.3f}<extra></extra>",
    },
  ];
}

/** So that the fall fills the picture: what blows up leaves it at the top. */
function layout({ id, curve, spec, suggestion }, isNarrow) {
  const first = curve.smoothed.find((value) => value !== null) ?? Math.LN10;
  const top = 1.5 * Math.max(first, Math.LN10);
  const { start, end } = spec.learning_rate;
  const marks = MARKS.filter((mark) => suggestion[mark] !== null);
  return {
    uirevision: id,
    showlegend: true,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
    xaxis: {
      type: "log",
      title: { text: t("axis.rate") },
      range: [Math.log10(start), Math.log10(end)],
      tickformat: "~g", // raised exponents are written with inline style (CSP)
      tickangle: 0,
      nticks: isNarrow ? 4 : 9,
    },
    yaxis: { title: { text: t("axis.loss") }, range: [0, top] },
    shapes: marks.map((mark) => line(suggestion[mark], mark === "rate")),
    annotations: marks.map((mark, place) => label(mark, suggestion[mark], place)),
    margin: { l: 52, r: 14, t: 40, b: 48 },
  };
}

function line(x, isChosen) {
  const { text, accent } = palette();
  const look = isChosen ? { color: accent, width: 2.5 } : { color: text, width: 1, dash: "dot" };
  return { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: look };
}

/** Labels stand at different heights, because the rates may lie close together. */
function label(mark, rate, place) {
  const { text, ground, accent } = palette();
  return {
    x: Math.log10(rate),
    yref: "paper",
    y: 0.97 - 0.085 * place,
    xanchor: mark === "rate" ? "right" : "left",
    xshift: mark === "rate" ? -4 : 4,
    yanchor: "top",
    showarrow: false,
    text: `${t(`rate.at.${mark}`)} ${inShort(rate)}`,
    bgcolor: ground,
    opacity: 0.95,
    font: { color: mark === "rate" ? accent : text, size: mark === "rate" ? 14 : 12 },
  };
}
