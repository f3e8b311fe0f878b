// Which rows of the table are shown, and the ticks of all of them.

import { fill, h } from "./dom.js";
import { live } from "./live.js";
import { t } from "./text.js";

const STATUSES = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"];

export class Filter {
  #showing;
  #onChange;
  #optimizers;
  #told = h("span.small.muted", { role: "status" });

  /** `onChange()` when other rows are to be shown, `onTick(isTicked)` for the ticks of all that are. */
  constructor(showing, { onChange, onTick }) {
    this.#showing = showing;
    this.#onChange = onChange;
    this.#optimizers = this.#select("optimizer", []);
    const all = (name, isTicked) =>
      h("button.quiet", { type: "button", onclick: () => onTick(isTicked) }, t(`runs.${name}`));
    this.element = h(
      "div.row.filter",
      { role: "search", "aria-label": t("runs.filter") },
      this.#text(),
      this.#select(
        "status",
        STATUSES.map((status) => [status, t(`status.${status}`)]),
      ),
      this.#optimizers,
      showing.sweep ? h("a.button", { href: "#/" }, t("runs.all_runs")) : null,
      h("span.space"),
      this.#told,
      all("all", true),
      all("none", false),
    );
  }

  /** Say how many rows there are, whether older runs could have some too, and how many runs are ticked. */
  show({ runs, ticked, hasOlder }) {
    const names = [...new Set([...live.jobs.values()].map((job) => job.spec.optimizer.name))].sort();
    if (this.#optimizers.dataset.names !== names.join()) {
      this.#optimizers.dataset.names = names.join();
      this.#fill(
        this.#optimizers,
        names.map((name) => [name, name]),
      );
    }
    const told = [
      t("runs.shown", { n: runs.length }),
      hasOlder && t("runs.not_older"),
      t("runs.ticked", { n: ticked }),
    ];
    const text = told.filter(Boolean).join(" · ");
    if (this.#told.textContent !== text) fill(this.#told, text);
  }

  /** Show all rows again; false when there was nothing to clear. */
  clear() {
    const { q, status, optimizer } = this.#showing;
    if (!(q || status || optimizer)) return false;
    for (const each of this.element.querySelectorAll("input, select")) each.value = "";
    this.#set({ q: "", status: "", optimizer: "" });
    this.element.querySelector("input").focus();
    return true;
  }

  #set(changes) {
    this.#showing.set(changes);
    this.#onChange();
  }

  #text() {
    const label = t("runs.search");
    const oninput = ({ target }) => this.#set({ q: target.value });
    return h("input", {
      type: "search",
      name: "q",
      value: this.#showing.q,
      placeholder: label,
      "aria-label": label,
      oninput,
    });
  }

  #select(name, choices) {
    const onchange = ({ target }) => this.#set({ [name]: target.value });
    const select = h("select", { name, "aria-label": t(`runs.column.${name}`), onchange });
    this.#fill(select, choices);
    return select;
  }

  #fill(select, choices) {
    const any = ["", t(`runs.any_${select.name}`)];
    const known = choices.some(([value]) => value === this.#showing[select.name]);
    const named = this.#showing[select.name];
    const all = [any, ...choices, ...(named && !known ? [[named, named]] : [])];
    fill(
      select,
      all.map(([value, words]) => h("option", { value }, words)),
    );
    select.value = named;
  }
}
