// The curves of the ticked runs over each other, what they mean, and their numbers as a table.

import { connection, Problem } from "./api.js";
import { Chart, palette, plotly } from "./chart.js";
import { runOf } from "./columns.js";
import { fill, h } from "./dom.js";
import { byOptimizer, colouring, dashOf, labelOf, rateOf } from "./encoding.js";
import { live } from "./live.js";
import { Readout } from "./readout.js";
import { swatch } from "./sparkline.js";
import { loss, number, percent, t } from "./text.js";
import { layoutOf, sampledOf, tracesOf } from "./traces.js";

const AGAIN_S = 2;
const GONE = [404, 422]; // what the server says of a run that is not there, or cannot be

/** More curves over each other than this cannot be told apart. */
export const MOST_DRAWN = 20;

export class Curves {
  #showing;
  #onPoint;
  #ticked = [];
  #missing = new Set();
  #asked = new Set();
  #later = new Map(); // id -> the timer after which it is asked for again
  #emphasised = null;
  #readout = null;

  #plot = h("div.plot", { role: "group", "aria-label": t("runs.chart") });
  #frame = h("div.plot-frame", {}, this.#plot);
  #legend = h("div.legend");
  #notes = h("div.notes.small.muted", { role: "status" });
  #numbers = h("tbody");
  #disclosure;
  #chart;
  #stop = new AbortController();

  /** `onPoint(id | null)` is told which curve is pointed at. */
  constructor(showing, onPoint) {
    this.#showing = showing;
    this.#onPoint = onPoint;
    this.#chart = new Chart(this.#plot, { onView: (view) => showing.zoomTo(view), onDrawn: () => this.#drawn() });
    this.#disclosure = this.#numbersTable();
    this.element = h("div.curves", {}, this.#chart.problem, this.#frame, this.#legend, this.#notes, this.#disclosure);
    const back = () => connection.isUp && this.show(this.#ticked); // what could not be loaded can be now
    connection.addEventListener("change", back, { signal: this.#stop.signal });
  }

  /** The runs that are drawn: of those ticked the first. */
  get drawn() {
    return this.#ticked.filter((id) => !this.#missing.has(id)).slice(0, MOST_DRAWN);
  }

  /** A function from the spec of one of them to its colour. */
  get colourOf() {
    return colouring(this.drawn.flatMap((id) => live.jobs.get(id)?.spec ?? []));
  }

  show(ticked) {
    this.#ticked = ticked;
    for (const id of this.drawn) this.#need(id);
    this.refresh();
  }

  /** What is known of them has changed, or how it is to be drawn. */
  refresh() {
    if (!this.element.isConnected) return; // another tab is open
    const runs = this.drawn.map(runOf).filter(({ job, history }) => job && history);
    const { colourOf } = this;
    this.#draw(runs, colourOf);
    this.#explain(runs, colourOf);
    const isEmpty = !runs.some(({ history }) => (this.#showing.y === "loss" ? history.loss : history.epochs).length);
    this.element.classList.toggle("is-empty", isEmpty); // axes without a curve would be invented ones
    this.#note(runs);
    if (this.#disclosure.open) this.#count(runs);
  }

  /** Mark a run's curve, or none. */
  emphasise(id) {
    this.#emphasised = id;
    this.#mark();
  }

  /** With a legend in the picture, since the one of the page is not in it. */
  png() {
    return this.#chart.png(1400, 800, { showlegend: true, legend: { orientation: "v" } });
  }

  gone() {
    this.#stop.abort();
    for (const timer of this.#later.values()) clearTimeout(timer);
    this.#chart.gone();
  }

  /** Ask for a run's history, once; and again when the run has ended while nobody told us. */
  async #need(id) {
    const history = live.history(id);
    const isStale = history && !history.isWhole && live.jobs.get(id)?.terminal;
    if (this.#asked.has(id) || this.#later.has(id) || (history && !isStale)) return;
    this.#asked.add(id);
    try {
      await live.load(id);
    } catch (error) {
      if (error instanceof Problem && GONE.includes(error.status)) this.#missing.add(id);
      else this.#again(id, error.retryAfterS ?? AGAIN_S);
    }
    this.#asked.delete(id);
    this.refresh();
  }

  #again(id, seconds) {
    if (this.#stop.signal.aborted) return;
    const ask = () => {
      this.#later.delete(id);
      if (this.drawn.includes(id)) this.#need(id);
    };
    this.#later.set(id, setTimeout(ask, 1000 * seconds));
  }

  /** The first time with all curves that are on their way: drawing is what takes the longest. */
  #draw(runs, colourOf) {
    const isFirst = !this.#readout;
    if (isFirst && this.drawn.some((id) => this.#asked.has(id)))
      plotly().catch(() => {}); // the chart says what is wrong
    else this.#chart.draw(tracesOf(runs, this.#showing, colourOf), layoutOf(this.#showing, palette()));
  }

  #drawn() {
    if (!this.#readout) this.#readout = this.#newReadout();
    this.#mark();
  }

  #newReadout() {
    const readout = new Readout(this.#plot, this.#showing, (id) => {
      this.emphasise(id);
      this.#onPoint(id);
    });
    this.#frame.append(readout.element);
    return readout;
  }

  /** By class and not by plotly, which would draw all curves anew. */
  #mark() {
    const lines = [...this.#plot.querySelectorAll(".scatterlayer .trace")];
    const own = [`trace${this.#emphasised}`, `traceraw-${this.#emphasised}`];
    const isOn = (line) => own.some((name) => line.classList.contains(name));
    const isAny = this.#emphasised && lines.some(isOn);
    for (const line of lines) {
      line.classList.toggle("is-on", Boolean(isAny && isOn(line)));
      line.classList.toggle("is-back", Boolean(isAny && !isOn(line)));
    }
  }

  #explain(runs, colourOf) {
    const { muted } = palette();
    const byRate = new Map(runs.map(({ job }) => [rateOf(job.spec), job.spec]));
    const byName = new Map(runs.map(({ job }) => [job.spec.optimizer.name, job.spec]));
    const optimizers = [...byName].sort(([a], [b]) => byOptimizer(a, b));
    const rates = [...byRate].sort(([a], [b]) => b - a);
    const samples = [
      [
        "colour",
        rates.map(([rate, spec]) => [
          Number.isNaN(rate) ? t("runs.range_test") : String(rate),
          colourOf(spec),
          "solid",
        ]),
      ],
      ["dash", optimizers.map(([name, spec]) => [name, muted, dashOf(spec)])],
    ];
    const key = JSON.stringify(samples);
    if (this.#legend.dataset.key === key) return;
    this.#legend.dataset.key = key;
    fill(
      this.#legend,
      samples.map(([what, list]) =>
        h(
          "span.means",
          { hidden: !list.length },
          h("span.muted", {}, t(`runs.legend.${what}`)),
          list.map(([words, colour, dash]) => h("span.sample", {}, swatch(colour, dash), words)),
        ),
      ),
    );
  }

  #note(runs) {
    const notes = [];
    const present = this.#ticked.length - this.#missing.size;
    const loading = this.drawn.length - runs.length;
    const isAny = () => live.ids.some((id) => this.#showing.admits(live.jobs.get(id)));
    if (!this.#ticked.length) notes.push(t(isAny() ? "runs.none_ticked" : "runs.no_match"));
    if (this.#showing.on && this.#ticked.length === 1 && runs.length === 1) notes.push(t("runs.one_ticked"));
    if (loading > 0) notes.push(t("runs.loading_curves", { n: loading }));
    if (present > MOST_DRAWN) notes.push(t("runs.most", { most: MOST_DRAWN, ticked: present }));
    if (this.#missing.size) notes.push(t("runs.missing", { n: this.#missing.size }));
    for (const { id, of, shown } of sampledOf(runs, this.#showing)) {
      const job = live.jobs.get(id);
      notes.push(t("runs.sampled", { label: nameOf(job), shown: number(shown), of: number(of) }));
    }
    const waiting = runs.filter(({ history }) => !history.loss.length).length;
    if (waiting) notes.push(t("runs.no_points", { n: waiting }));
    if (this.#showing.y === "accuracy" && runs.some(({ history }) => !history.epochs.length))
      notes.push(t("runs.no_epochs"));
    const text = notes.join(" ");
    if (this.#notes.textContent !== text) fill(this.#notes, text); // a screen reader tells each change
  }

  #numbersTable() {
    const heads = ["label", "points", "first", "least", "last", "accuracy"];
    const head = heads.map((name, index) => h(index ? "th.number" : "th", { scope: "col" }, t(`runs.numbers.${name}`)));
    return h(
      "details.numbers",
      { ontoggle: () => this.refresh() },
      h("summary", {}, t("runs.numbers")),
      h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, head)), this.#numbers)),
    );
  }

  #count(runs) {
    const rows = runs.map(({ job, history }) => {
      const finite = history.loss.filter((each) => each !== null);
      const accuracies = history.epochs.map((each) => each.valid_accuracy);
      const cells = [
        number(history.count),
        loss(history.loss[0]),
        loss(finite.length ? finite.reduce((least, each) => Math.min(least, each)) : null),
        loss(history.lastLoss),
        percent(accuracies.length ? Math.max(...accuracies) : null),
      ];
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, nameOf(job)),
        cells.map((each) => h("td.number", {}, each)),
      );
    });
    fill(this.#numbers, rows);
  }
}

const nameOf = (job) => job.spec.name ?? labelOf(job);
