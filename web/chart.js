// Plotly as the page uses it: loaded when it is first needed, without its cloud, in the page's colours and language, and never
// drawn more often than the browser can keep up with.

import { fill, h } from "./dom.js";
import { language, t } from "./text.js";

let loading = null;

/** Plotly itself. Raises when the server has none (its extra `ui` is not installed) or it cannot be loaded. */
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const src = document.querySelector('meta[name="plotly"]').content;
    if (!src) return reject(new Error(t("chart.missing")));
    const script = document.createElement("script");
    script.src = src;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      script.remove();
      reject(new Error(t("chart.failed")));
    };
    document.head.append(script);
  });
  return loading;
}

/** Fetch plotly, but do not run it yet: for a page on which something else is to be seen first. It is run by `plotly()`. */
export function prepare() {
  const { content: href } = document.querySelector('meta[name="plotly"]');
  if (!href || loading || document.querySelector("link[rel=preload]")) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "preload", as: "script", href }));
}

const CONFIG = {
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  responsive: true,
  scrollZoom: false,
  doubleClick: "autosize", // and not back to where the address began
  modeBarButtonsToRemove: ["select2d", "lasso2d", "toggleSpikelines", "hoverClosestCartesian", "hoverCompareCartesian"],
};

/** The page's colours as they are now, from its style sheet. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    text: colour("--text"),
    muted: colour("--muted"),
    line: colour("--line"),
    ground: colour("--ground"),
    accent: colour("--accent"),
  };
}

function themed(layout) {
  const { text, muted, line, ground, accent } = palette();
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const own = { ...layout };
  for (const name of Object.keys(layout).filter((each) => /^[xy]axis\d*$/.test(each)))
    own[name] = { ...axis, ...layout[name] };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, family: "system-ui, sans-serif", size: 12 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: accent },
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text } },
    margin: { l: 56, r: 12, t: 12, b: 44 },
    ...own,
  };
}

function register(Plotly) {
  const words = {};
  for (const name of [
    "Autoscale",
    "Reset axes",
    "Download plot as a PNG",
    "Pan",
    "Zoom",
    "Zoom in",
    "Zoom out",
    "Double-click to zoom back out",
  ]) {
    words[name] = t(`plotly.${name}`);
  }
  Plotly.register({ moduleType: "locale", name: "zh-CN", dictionary: language === "zh" ? words : {}, format: {} });
}

export class Chart {
  /** Says why nothing is drawn, until something is; for whoever shows the chart to place beside it. */
  problem = h("p.error", { role: "alert", hidden: true });
  #drawing = null;
  #wanted = null;
  #isGone = false;

  /**
   * `onView({x: [from, to] | null, y})` is told when somebody zooms, null for an axis that is as wide as its data; `onDrawn()`
   * whenever it has been drawn.
   */
  constructor(element, { onView, onDrawn } = {}) {
    this.element = element;
    this.onView = onView;
    this.onDrawn = onDrawn;
  }

  /**
   * Show these traces. What somebody zoomed stays as long as `layout.uirevision` does. Calls that come faster than they can be
   * drawn are left out, all but the last; drawing takes a quarter of the time at most. Resolves to whether it could be drawn.
   */
  draw(traces, layout) {
    this.#wanted = { traces, layout };
    this.#drawing ??= this.#loop();
    return this.#drawing;
  }

  async #loop() {
    try {
      const Plotly = await plotly();
      register(Plotly);
      this.problem.hidden = true;
      while (this.#wanted && !this.#isGone) {
        const { traces, layout } = this.#wanted;
        this.#wanted = null;
        const began = performance.now();
        await this.#react(Plotly, traces, themed(layout));
        const rest = 3 * (performance.now() - began);
        await new Promise((resolve) => setTimeout(resolve, rest));
      }
      return true;
    } catch (error) {
      this.problem.hidden = false;
      fill(this.problem, error.message);
      return false;
    } finally {
      this.#drawing = null; // in the same turn as the last look at what is wanted
    }
  }

  async #react(Plotly, traces, layout) {
    const isFirst = !this.element.classList.contains("js-plotly-plot");
    await Plotly.react(this.element, traces, layout, { ...CONFIG, locale: language === "zh" ? "zh-CN" : "en" });
    if (isFirst) this.element.on("plotly_relayout", (change) => this.#zoomed(change));
    this.onDrawn?.();
  }

  #zoomed(change) {
    if (!this.onView || !Object.keys(change).some((name) => /axis/.test(name))) return;
    const { xaxis, yaxis } = this.element.layout;
    const range = (axis) => (axis.autorange === false || !axis.autorange ? [...axis.range] : null);
    this.onView({ x: range(xaxis), y: range(yaxis) });
  }

  /** A PNG of what is shown, as a blob, on the page's ground; `changes` are to its layout. */
  async png(width = 1200, height = 700, changes = {}) {
    const Plotly = await plotly();
    const layout = { ...this.element.layout, paper_bgcolor: palette().ground, ...changes };
    const url = await Plotly.toImage({ data: this.element.data, layout }, { format: "png", width, height });
    const raw = atob(url.slice(url.indexOf(",") + 1));
    return new Blob([Uint8Array.from(raw, (character) => character.charCodeAt(0))], { type: "image/png" });
  }

  gone() {
    this.#isGone = true;
    if (this.element.classList.contains("js-plotly-plot")) window.Plotly?.purge(this.element);
  }
}
