// The table of runs. A row is made once and then only changes where what it says does: two hundred of them, of which twenty grow
// several times a second, cost next to nothing.

import { COLUMNS, sorted } from "./columns.js";
import { fill, h } from "./dom.js";
import { labelOf } from "./encoding.js";
import { Sorting } from "./sorting.js";
import { swatch } from "./sparkline.js";
import { moment, t } from "./text.js";
import { hide, tipped } from "./tip.js";

export class RunTable {
  #rows = new Map();
  #heads = new Map();
  #body = h("tbody");
  #sorting;
  #nothing;
  #none = h("p", { role: "status" });
  #on;

  /** `on.tick(id, isTicked)`, `on.point(id | null)` when a row is pointed at, `on.sort(how)`, `on.clear()` for the filter. */
  constructor(on) {
    this.#on = on;
    const head = h(
      "tr",
      {},
      h("th", { scope: "col" }, h("span.hidden-text", {}, t("runs.tick"))),
      COLUMNS.map((column) => this.#head(column)),
    );
    const clear = h("button", { type: "button", onclick: () => on.clear() }, t("runs.clear"));
    this.#nothing = h("div.runs-nothing", { hidden: true }, this.#none, clear);
    this.#sorting = new Sorting((sort) => on.sort(sort));
    const region = h(
      "div.runs-table.scroll",
      { tabIndex: 0, role: "region", "aria-label": t("runs.table"), onscroll: hide },
      h("table", {}, h("thead", {}, head), this.#body),
      this.#nothing,
    );
    this.element = h("div", {}, this.#sorting.element, region);
  }

  /**
   * Show these runs in the order of `sort` (see `sorted`). `lookOf(id)` is `{isTicked, colour, dash}`; `changed` the ids of those
   * of which anything else can be another than before, null for all; `isWhole` whether no more of them are on their way, and
   * `hasOlder` whether there are some that nobody asked for yet.
   */
  show(runs, { sort, lookOf, changed, isWhole, hasOlder }) {
    this.#nothing.hidden = runs.length > 0 || !isWhole;
    const none = t(hasOlder ? "runs.no_match_yet" : "runs.no_match");
    if (this.#none.textContent !== none) fill(this.#none, none);
    this.#sorting.show(sort);
    for (const [name, head] of this.#heads) {
      const isBy = sort.replace("-", "") === name;
      head.setAttribute("aria-sort", isBy ? (sort.startsWith("-") ? "descending" : "ascending") : "none");
    }
    const wanted = new Set(runs.map((run) => run.id));
    for (const [id, row] of this.#rows) {
      if (!wanted.has(id)) {
        row.element.remove();
        this.#rows.delete(id);
      }
    }
    const ordered = sorted(runs, sort);
    for (const run of ordered) {
      const isNew = !this.#rows.has(run.id);
      const row = this.#row(run);
      row.look(lookOf(run.id));
      if (isNew || !changed || changed.has(run.id)) row.show(run);
    }
    this.#arrange(ordered.map((run) => this.#row(run)));
  }

  /** Mark the rows of these runs, and no others. */
  emphasise(...ids) {
    for (const [id, row] of this.#rows) row.element.classList.toggle("is-on", ids.includes(id));
  }

  /** Bring a run's row into view. */
  reveal(id) {
    const row = this.#rows.get(id)?.element;
    row?.scrollIntoView({ block: "center" });
    row?.querySelector("a").focus({ preventScroll: true });
  }

  #head(column) {
    const name = t(`runs.column.${column.name}`);
    const sortable = () => h("button", { type: "button", onclick: () => this.#sortBy(column) }, name);
    const said = tipped(column.value ? sortable() : h("span", {}, name), name, t(`runs.about.${column.name}`));
    const head = h(`th.c-${column.name}`, { scope: "col" }, said);
    if (column.isNumber) head.classList.add("number");
    if (column.value) this.#heads.set(column.name, head);
    return head;
  }

  /** Words rise at first, numbers fall; once more turns it round. */
  #sortBy({ name, isNumber }) {
    const now = this.#heads.get(name).getAttribute("aria-sort");
    const isFalling = now === "none" ? isNumber : now === "ascending";
    this.#on.sort(`${isFalling ? "-" : ""}${name}`);
  }

  #row(run) {
    if (!this.#rows.has(run.id)) this.#rows.set(run.id, new Row(run, this.#on));
    return this.#rows.get(run.id);
  }

  /** Put the rows in their order; those that stand right are not touched, and what has the focus keeps it. */
  #arrange(rows) {
    const focused = document.activeElement;
    let place = this.#body.firstChild;
    for (const { element } of rows) {
      if (element === place) place = place.nextSibling;
      else this.#body.insertBefore(element, place);
    }
    if (focused !== document.activeElement && this.#body.contains(focused)) focused.focus({ preventScroll: true });
  }
}

class Row {
  #cells = new Map(); // a column's name -> [its cell, what it says]
  #look = "";

  constructor({ id, job }, on) {
    this.tick = h("input", {
      type: "checkbox",
      "aria-label": t("runs.tick_one", { label: calledOf(job) }),
      onchange: () => on.tick(id, this.tick.checked),
    });
    this.sample = h("span");
    const cells = COLUMNS.map((column) => this.#cell(column));
    const label = h("label.tick", {}, this.tick, this.sample);
    this.element = h("tr", { dataset: { id } }, h("td.c-tick", {}, label), cells);
    this.element.addEventListener("pointerenter", () => on.point(id));
    this.element.addEventListener("pointerleave", () => on.point(null));
    this.element.addEventListener("focusin", () => on.point(id));
    this.element.addEventListener("focusout", () => on.point(null));
  }

  #cell({ name, isNumber }) {
    const label = t(`runs.column.${name}`); // shown where there is no head: on a phone
    const cell =
      name === "optimizer" ? h("th.c-optimizer", { scope: "row" }) : h(`td.c-${name}`, { dataset: { label } });
    if (isNumber) cell.classList.add("number");
    this.#cells.set(name, [cell, null]);
    return cell;
  }

  look({ isTicked, colour, dash }) {
    if (this.tick.checked !== isTicked) this.tick.checked = isTicked;
    if (this.#look !== `${colour} ${dash}`) fill(this.sample, swatch(colour, dash));
    this.#look = `${colour} ${dash}`;
  }

  show(run) {
    for (const column of COLUMNS) {
      const [cell, before] = this.#cells.get(column.name);
      const now = column.said(run);
      if (now === before) continue;
      this.#cells.set(column.name, [cell, now]);
      fill(cell, column.cell ? parted(column.cell(run)) : now);
      if (column.name === "name") cell.title = now; // it may be cut short
    }
  }
}

/** A text beside other things is an element of its own, so that it can be cut short and they stay. */
const parted = (parts) =>
  Array.isArray(parts)
    ? h(
        "div.parts",
        {},
        parts.map((part) => (typeof part === "string" ? h("span.words", {}, part) : part)),
      )
    : parts;

/** What tells a run from the others; those without a name may have all else in common. */
const calledOf = (job) =>
  [labelOf(job), job.spec.name ?? `${t("parallel.seed")} ${job.spec.seed}, ${moment(job.created_at)}`].join(", ");
