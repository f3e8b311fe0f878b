// What the curves say at the place that is pointed at: one line a run, the topmost first, the nearest in bold.

import { fill, h } from "./dom.js";
import { dashOf, labelOf } from "./encoding.js";
import { live } from "./live.js";
import { swatch } from "./sparkline.js";
import { loss, number, percent, t } from "./text.js";

const GONE_MS = 150; // plotly says "left" between any two places

export class Readout {
  element = h("div.readout", { hidden: true, "aria-hidden": "true" });
  #chart;
  #points = [];
  #mouse = null; // where it was last, and when
  #leaving = null; // a timer
  #showing;
  #onNear;

  /** Beside the plot in `chart`, an element that plotly has drawn in; `onNear(id | null)` is told the curve that is pointed at. */
  constructor(chart, showing, onNear) {
    this.#chart = chart;
    this.#showing = showing;
    this.#onNear = onNear;
    chart.on("plotly_hover", ({ points }) => this.#over(points.filter(({ y }) => y !== null)));
    chart.on("plotly_unhover", () => this.#left());
    chart.addEventListener("pointermove", (event) => this.#moved(event));
    chart.addEventListener("pointerleave", () => this.#hide());
  }

  #moved({ clientX, clientY }) {
    this.#mouse = { x: clientX, y: clientY, at: performance.now() };
    this.#point();
  }

  #over(points) {
    clearTimeout(this.#leaving);
    this.#points = points;
    this.#point();
  }

  /** No curve is near any more; or the chart was only drawn anew, below a mouse that stands still. */
  #left() {
    const hasMoved = this.#mouse && performance.now() - this.#mouse.at < GONE_MS;
    clearTimeout(this.#leaving);
    if (hasMoved) this.#leaving = setTimeout(() => this.#hide(), GONE_MS);
  }

  #hide() {
    clearTimeout(this.#leaving);
    this.#points = [];
    this.element.hidden = true;
    this.#onNear(null);
  }

  #point() {
    const plot = this.#chart.querySelector(".nsewdrag")?.getBoundingClientRect();
    if (!plot || !this.#mouse || !this.#points.length) return;
    const away = ({ yaxis, y }) => Math.abs(yaxis.d2p(y) - (this.#mouse.y - plot.top));
    const points = [...this.#points].sort((a, b) => b.y - a.y);
    const nearest = points.reduce((best, point) => (away(point) < away(best) ? point : best));
    this.#tell(points, nearest);
    this.element.classList.toggle("at-left", this.#mouse.x > plot.left + plot.width / 2); // not on what it tells of
    this.#onNear(nearest.data.uid);
  }

  #tell(points, nearest) {
    const { x, y } = this.#showing;
    const value = y === "loss" ? loss : percent;
    const where = number(nearest.x, x === "step" ? 0 : 2);
    const rows = points
      .filter((point) => live.jobs.has(point.data.uid))
      .map((point) => {
        const { spec } = live.jobs.get(point.data.uid);
        return h(
          `tr.${point === nearest ? "is-on" : "other"}`,
          {},
          h("td", {}, swatch(point.data.line.color, dashOf(spec))),
          h("td.what", {}, spec.name ?? labelOf({ spec })),
          h("td.number", {}, value(point.y)),
        );
      });
    fill(this.element, h("div.small.muted", {}, `${t(`axis.${x}`)} ${where}`), h("table", {}, h("tbody", {}, rows)));
    this.element.hidden = false;
  }
}
