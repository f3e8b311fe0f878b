// What is to be seen on the page of runs: which curves, over what, how smooth, which rows. The address says all of it, so that a
// link, or loading the page again, shows the same.

import { isRangeTest } from "./encoding.js";
import { live } from "./live.js";

const MOST_BY_DEFAULT = 8;
const MOST_OF_A_SWEEP = 20;
const NONE = "none";

/** What the address leaves out. `on` is the ticked runs; empty: those that are ticked by default. `kept` is of parallel.js. */
const PLAIN = {
  on: "",
  chart: "curves",
  measure: "accuracy",
  kept: "",
  x: "step",
  y: "loss",
  logx: "0",
  logy: "1",
  smooth: "0",
  zx: "",
  zy: "",
  sort: "-created",
  q: "",
  status: "",
  optimizer: "",
  sweep: "",
};

const CHOICES = {
  chart: ["curves", "grid", "parallel"],
  measure: ["accuracy", "loss", "time"],
  x: ["step", "epoch", "time"],
  y: ["loss", "accuracy"],
  logx: ["0", "1"],
  logy: ["0", "1"],
};

export class Showing {
  #setQuery;

  constructor({ query, setQuery }) {
    this.#setQuery = setQuery;
    for (const [name, plain] of Object.entries(PLAIN)) {
      const value = query.get(name) ?? plain;
      this[name] = CHOICES[name]?.includes(value) === false ? plain : value;
    }
  }

  /** Show something else; the address follows. */
  set(changes) {
    Object.assign(this, changes);
    const named = Object.entries(changes).map(([name, value]) => [name, value === PLAIN[name] ? null : value]);
    this.#setQuery(Object.fromEntries(named));
  }

  /** How smooth, from 0 to 0.99. */
  get weight() {
    const weight = Number(this.smooth);
    return weight > 0 && weight <= 0.99 ? weight : 0;
  }

  isLog(axis) {
    return axis === "x" ? this.logx === "1" : this.logy === "1" && this.y === "loss";
  }

  /** What of an axis is zoomed, `[from, to]` as plotly counts (logarithms on a log axis), or null. */
  zoom(axis) {
    const ends = this[`z${axis}`].split(",").map(Number);
    return ends.length === 2 && ends.every(Number.isFinite) && ends[0] !== ends[1] ? ends : null;
  }

  zoomTo({ x, y }) {
    const text = (ends) => (ends ? ends.map((end) => Number(end).toPrecision(7)).join(",") : "");
    this.set({ zx: text(x), zy: text(y) });
  }

  /** The ticked runs, in the order they were ticked. */
  get ticked() {
    if (this.on === NONE) return [];
    return this.on ? [...new Set(this.on.split(","))] : byDefault(this.sweep);
  }

  tick(ids) {
    this.set({ on: ids.length ? ids.join(",") : NONE });
  }

  /** Say in the address which runs are ticked even if nobody chose them: others come and go. */
  pin() {
    this.tick(this.ticked);
  }

  /** Whether a run's row is shown. */
  admits(job) {
    return (
      (!this.sweep || job.sweep === this.sweep) &&
      (!this.status || job.status === this.status) &&
      (!this.optimizer || job.spec.optimizer.name === this.optimizer) &&
      wordsOf(job).includes(this.q.trim().toLowerCase())
    );
  }
}

function wordsOf({ id, spec }) {
  const tags = Object.entries(spec.tags).map(([key, value]) => `${key}:${value}`);
  return [spec.optimizer.name, JSON.stringify(spec.learning_rate), spec.name, ...tags, id].join(" ").toLowerCase();
}

/** A sweep's runs; else those that go on, and the newest that have something to show. */
function byDefault(sweep) {
  const jobs = live.ids.map((id) => live.jobs.get(id));
  if (sweep) return ids(jobs.filter((job) => job.sweep === sweep)).slice(0, MOST_OF_A_SWEEP);
  const goOn = jobs.filter((job) => !job.terminal && job.latest);
  const ended = jobs.filter((job) => job.terminal && job.latest);
  const shown = [...goOn, ...ended];
  const comparable = shown.filter((job) => !isRangeTest(job.spec)); // its rate is another at every step
  return ids(comparable.length ? comparable : shown).slice(0, MOST_BY_DEFAULT);
}

const ids = (jobs) => jobs.map((job) => job.id);
