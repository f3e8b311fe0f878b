// What the rows are sorted by, to be chosen where there is no room for a table's head: on a phone.

import { COLUMNS } from "./columns.js";
import { fill, h } from "./dom.js";
import { t } from "./text.js";

export class Sorting {
  #select;
  #about = h("p.small.muted", { id: "sorted-by" });
  #turn;
  #sort = "";

  /** `onSort(how)` is told a column's name, with a `-` before it when the largest comes first. */
  constructor(onSort) {
    const options = COLUMNS.filter(({ value }) => value).map(({ name }) =>
      h("option", { value: name }, t(`runs.column.${name}`)),
    );
    const choose = () => onSort(`${this.#numbers ? "-" : ""}${this.#select.value}`);
    const turn = () => onSort(this.#sort.startsWith("-") ? this.#sort.slice(1) : `-${this.#sort}`);
    this.#select = h("select", { "aria-describedby": this.#about.id, onchange: choose }, options);
    this.#turn = h("button", { type: "button", "aria-label": t("runs.turn"), onclick: turn });
    const label = h("label.row", {}, t("runs.sort"), this.#select);
    this.element = h("div.runs-sorting", {}, h("div.row", {}, label, this.#turn), this.#about);
  }

  /** Words rise at first, numbers fall. */
  get #numbers() {
    return COLUMNS.find(({ name }) => name === this.#select.value).isNumber;
  }

  show(sort) {
    if (sort === this.#sort) return;
    this.#sort = sort;
    const name = sort.replace("-", "");
    this.#select.value = COLUMNS.some((column) => column.value && column.name === name) ? name : "created";
    fill(this.#turn, sort.startsWith("-") ? "↓" : "↑");
    fill(this.#about, t(`runs.about.${this.#select.value}`));
  }
}
