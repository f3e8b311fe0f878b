// All runs on one page: a table of them, and the curves of those that are ticked.

import { save } from "./api.js";
import { plotly, prepare } from "./chart.js";
import { copied } from "./clipboard.js";
import { runOf } from "./columns.js";
import { Comparison } from "./comparison.js";
import { Controls } from "./controls.js";
import { csvOf } from "./csv.js";
import { Curves } from "./curves.js";
import { add, fill, h } from "./dom.js";
import { dashOf, isRangeTest } from "./encoding.js";
import { Filter } from "./filter.js";
import { grid } from "./grid.js";
import { live } from "./live.js";
import { parallel } from "./parallel.js";
import { wordsOf } from "./refusal.js";
import { Showing } from "./showing.js";
import { sweepCard } from "./sweep.js";
import { RunTable } from "./table.js";
import { t } from "./text.js";
import { hide } from "./tip.js";
import { welcome } from "./welcome.js";

const AGO_MS = 10_000;
const PICTURE_MS = 500; // those that are built anew when something changed
const PICTURES = { grid, parallel };
const FOCUSABLE = "button, select, [tabindex]";

export function mount(root, route) {
  prepare();
  const page = new Page(root, new Showing(route));
  return () => page.gone();
}

class Page {
  #stop = new AbortController();
  #root;
  #showing;
  #sweep = null;
  #parts = null; // once there are runs
  #tickedKey = "";
  #timer;
  #isWhole; // no more rows are on their way
  #soon = null; // the timer of another picture

  constructor(root, showing) {
    this.#root = root;
    this.#showing = showing;
    this.#isWhole = !showing.sweep;
    const { signal } = this.#stop;
    live.addEventListener("change", ({ detail }) => this.#changed(detail), { signal });
    this.#timer = setInterval(() => this.#parts && this.#rows(), AGO_MS); // "5 min ago"
    if (showing.sweep) this.#loadSweep();
    this.#begin();
  }

  async #loadSweep() {
    await live.loadSweep(this.#showing.sweep).catch(() => {}); // its card says what is wrong
    this.#isWhole = true;
    if (this.#parts) this.#ticked();
  }

  gone() {
    this.#stop.abort();
    clearInterval(this.#timer);
    this.#unlay();
  }

  /** What there is before the runs are. */
  #begin() {
    if (live.isRead && (live.jobs.size || this.#showing.sweep)) return this.#lay();
    if (live.isRead) {
      plotly().catch(() => {}); // there is time for it now; whoever draws is told what is wrong
      return fill(this.#root, welcome());
    }
    fill(this.#root, h("h1.hidden-text", {}, t("title.runs")), h("div.before", { role: "status" }, this.#noList()));
  }

  #noList() {
    const { failure } = live;
    if (!failure) return h("p.muted", {}, t("runs.loading"));
    return h("p.error", {}, wordsOf(failure, "runs.away"));
  }

  #lay() {
    const showing = this.#showing;
    const point = (id) => this.#emphasise(id);
    const curves = new Curves(showing, (id) => this.#parts?.table.emphasise(id));
    this.#parts = {
      curves,
      controls: new Controls(showing, () => curves.refresh()),
      comparison: new Comparison(),
      filter: new Filter(showing, { onChange: () => this.#rows(), onTick: (isOn) => this.#tickShown(isOn) }),
      table: new RunTable({
        tick: (id, isOn) => this.#tick(id, isOn),
        point,
        sort: (sort) => {
          showing.set({ sort });
          this.#rows();
        },
        clear: () => this.#parts.filter.clear() || location.assign("#/"),
      }),
      picture: h("div.picture", { id: "runs-picture", role: "tabpanel" }),
      tabs: h("div.tabs", { role: "tablist", "aria-label": t("runs.tabs"), onkeydown: (event) => this.#turn(event) }),
      told: h("span.small.muted", { role: "status" }),
      older: h("button", { type: "button", onclick: () => this.#more() }, t("runs.older")),
    };
    if (showing.sweep) this.#sweep = sweepCard(showing.sweep);
    const { table, older } = this.#parts;
    const list = h("section.runs-list", {}, this.#parts.filter.element, table.element, older);
    fill(
      this.#root,
      h("h1.hidden-text", {}, t("title.runs")),
      this.#sweep?.element,
      h("div.runs-page", {}, this.#picture(), list),
    );
    this.#showTab();
    this.#ticked();
  }

  #unlay() {
    hide();
    clearTimeout(this.#soon);
    this.#sweep?.gone();
    this.#parts?.curves.gone();
    this.#parts?.comparison.gone();
    this.#parts = null;
  }

  #picture() {
    const { tabs, told, comparison, picture } = this.#parts;
    const button = (name, onclick) => h("button.quiet", { type: "button", onclick }, t(`runs.${name}`));
    this.#parts.exports = [button("csv", () => this.#csv()), button("png", () => this.#png())];
    const bar = h(
      "div.row",
      {},
      tabs,
      h("span.space"),
      told,
      this.#parts.exports,
      button("link", () => this.#link()),
    );
    return h("section.runs-chart.card", { "aria-label": t("runs.chart") }, bar, picture, comparison.element);
  }

  // --- what changes ------------------------------------------------------------------------------------------------------

  #changed({ ids, isList }) {
    if (this.#parts && !live.jobs.size && !this.#showing.sweep) this.#unlay(); // the last was deleted
    if (!this.#parts) return this.#begin();
    if (isList || this.#key() !== this.#tickedKey) return this.#ticked(ids);
    this.#rows(ids);
    if (this.#parts.curves.drawn.some((id) => ids.has(id))) this.#redraw();
  }

  #key() {
    return this.#showing.ticked.join();
  }

  /** Show the rows; of all, or of these ids, anything may have changed. */
  #rows(changed = null) {
    const { table, filter, older } = this.#parts;
    const runs = this.#shown().map(runOf);
    const ticked = new Set(this.#showing.ticked);
    const { colourOf } = this.#parts.curves;
    const lookOf = (id) => {
      const { spec } = live.jobs.get(id);
      const isTicked = ticked.has(id);
      return { isTicked, colour: isTicked ? colourOf(spec) : "var(--line)", dash: dashOf(spec) };
    };
    const hasOlder = live.hasMore && !this.#showing.sweep;
    table.show(runs, { sort: this.#showing.sort, lookOf, changed, isWhole: this.#isWhole, hasOlder });
    filter.show({ runs, ticked: ticked.size, hasOlder });
    older.hidden = !hasOlder;
    if (this.#showing.chart !== "curves") this.#soon ??= setTimeout(() => this.#redrawPicture(), PICTURE_MS);
  }

  /** The runs that have a row. */
  #shown() {
    return live.ids.filter((id) => this.#showing.admits(live.jobs.get(id)));
  }

  /** Other runs are ticked than before. */
  #ticked(changed = new Set()) {
    this.#tickedKey = this.#key();
    this.#parts.curves.show(this.#showing.ticked);
    this.#rows(changed); // in the colours that they have now
    this.#redraw();
  }

  #redraw() {
    const { curves, comparison } = this.#parts;
    curves.show(this.#showing.ticked);
    comparison.show(this.#isWholeSweep() ? [] : this.#showing.ticked);
  }

  /** Then the sweep's card says what a comparison would. */
  #isWholeSweep() {
    const { sweep, ticked } = this.#showing;
    return sweep && [...live.jobs.values()].every((job) => job.sweep !== sweep || ticked.includes(job.id));
  }

  /** Build the picture of the shown runs anew when it would be another; what has the focus in it keeps it. */
  #redrawPicture() {
    this.#soon = null;
    const { picture } = this.#parts;
    const draw = PICTURES[this.#showing.chart];
    if (!draw) return;
    const ids = this.#shown().filter((id) => !isRangeTest(live.jobs.get(id).spec));
    const runs = ids.map(runOf);
    const key = runs.map(({ id, job, overview }) => `${id} ${job.updated_at} ${Boolean(overview)}`).join();
    if (picture.firstChild && picture.dataset.key === key) return;
    picture.dataset.key = key;
    const place = [...picture.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
    fill(picture, draw(ids, { onPick: (picked) => this.#pick(picked), showing: this.#showing }));
    if (place >= 0) picture.querySelectorAll(FOCUSABLE)[place]?.focus();
  }

  #tick(id, isOn) {
    const others = this.#showing.ticked.filter((each) => each !== id);
    this.#showing.tick(isOn ? [...others, id] : others);
    this.#ticked();
  }

  /** Tick the rows that are shown, or take their ticks away; others stay as they are. */
  #tickShown(isOn) {
    const shown = this.#shown();
    const others = this.#showing.ticked.filter((id) => !shown.includes(id));
    this.#showing.tick(isOn ? [...others, ...shown] : others);
    this.#ticked();
  }

  /** Also told when a row that has the focus is taken away with the whole page. */
  #emphasise(id) {
    this.#parts?.curves.emphasise(id);
    this.#parts?.table.emphasise(id);
  }

  /** Tick the runs that were chosen in a picture, and show their rows. */
  #pick(ids) {
    this.#showing.tick([...new Set([...this.#showing.ticked, ...ids])]);
    this.#ticked();
    this.#parts.table.reveal(ids[0]);
    this.#parts.table.emphasise(...ids);
  }

  // --- the tabs ----------------------------------------------------------------------------------------------------------

  #showTab() {
    const { tabs, picture, curves, controls, exports } = this.#parts;
    const isCurves = this.#showing.chart === "curves";
    const tab = (name) => {
      const isOn = this.#showing.chart === name;
      const chosen = { "aria-selected": String(isOn), tabIndex: isOn ? 0 : -1 };
      const its = { id: `runs-tab-${name}`, role: "tab", "aria-controls": picture.id };
      return h(
        "button",
        { type: "button", value: name, ...its, ...chosen, onclick: () => this.#open(name) },
        t(`runs.tab.${name}`),
      );
    };
    fill(tabs, ["curves", ...Object.keys(PICTURES)].map(tab));
    picture.setAttribute("aria-labelledby", `runs-tab-${this.#showing.chart}`);
    for (const button of exports) button.hidden = !isCurves;
    fill(picture);
    if (isCurves) add(picture, controls.element, curves.element);
    else this.#redrawPicture();
  }

  #open(name) {
    this.#showing.set({ chart: name });
    this.#showTab();
    this.#redraw();
    this.#parts.tabs.querySelector(`[value=${name}]`).focus();
  }

  /** The arrow keys go from tab to tab. */
  #turn({ key }) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const names = ["curves", ...Object.keys(PICTURES)];
    const place = names.indexOf(this.#showing.chart) + step;
    this.#open(names[(place + names.length) % names.length]);
  }

  // --- what can be taken along ---------------------------------------------------------------------------------------------

  async #csv() {
    const { y } = this.#showing;
    await this.#say(async () => save(await csvOf(this.#parts.curves.drawn, y), `descent-${y}.csv`));
  }

  async #png() {
    await this.#say(async () => save(await this.#parts.curves.png(), "descent-curves.png"));
  }

  async #link() {
    this.#showing.pin();
    await this.#say(async () => {
      if (!(await copied(location.href))) throw new Error(t("runs.not_copied"));
      return t("copy.done");
    });
  }

  async #more() {
    await this.#say(() => live.more());
  }

  /** Do something, and say beside the buttons what came of it. */
  async #say(action) {
    const { told } = this.#parts;
    told.classList.remove("failed");
    try {
      fill(told, (await action()) ?? "");
    } catch (error) {
      told.classList.add("failed");
      fill(told, wordsOf(error));
    }
  }
}
