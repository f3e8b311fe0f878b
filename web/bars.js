// What one model makes of a drawing: a head line, and a bar for each class.

import { add, fill, h } from "./dom.js";
import { number, percent, t } from "./text.js";

const share = (probability) => percent(probability, 1);

export class Column {
  #rows = [];

  /** `model` is the name it is asked by; `onRemove` is null where it is the only one. */
  constructor(model, { title, detail, accuracy, dataset, classes, onRemove }) {
    Object.assign(this, { model, title, dataset, classes });
    this.image = null; // what the answer is of
    this.says = h("span.says");
    this.sure = h("span.muted");
    this.foot = h("p.small.muted.foot");
    this.error = h("p.error.small", { hidden: true });
    const remove = onRemove && h("button.quiet", { type: "button", onclick: onRemove }, "×");
    remove?.setAttribute("aria-label", t("draw.remove", { model: title }));
    this.table = h("table.bars", { "aria-label": t("draw.bars", { model: title }) }, this.#body(classes));
    this.element = h(
      "section.card.guess",
      { dataset: { model }, "aria-label": title },
      h("header.row", {}, h("h3", {}, title), h("span.space"), remove),
      h("p.small.muted.detail", { title: detail }, detail, accuracy && h("br"), accuracy),
      h("p.headline", {}, this.says, this.sure),
      this.error,
      this.table,
      this.foot,
    );
    this.show(null, null);
  }

  #body(classes) {
    this.#rows = classes.map((label) => {
      const [bar, value] = [h("span.bar"), h("td.number")];
      const row = h("tr", {}, h("th", { scope: "row" }, label), h("td.track", {}, bar), value);
      return { row, bar, value };
    });
    return add(
      h("tbody"),
      this.#rows.map(({ row }) => row),
    );
  }

  /** The class this model says, or null. */
  get best() {
    return this.answer ? this.answer.predictions[0].class : null;
  }

  get label() {
    return this.answer ? this.classes[this.best] : null;
  }

  get confidence() {
    return this.answer?.predictions[0].confidence ?? null;
  }

  /** An answer of `/predict`, or why there is none (words); neither for an empty sheet. */
  show(answer, problem) {
    this.answer = answer;
    this.error.hidden = !problem;
    fill(this.error, problem ?? "");
    const probabilities = answer?.predictions[0].probabilities ?? [];
    this.#rows.forEach(({ row, bar, value }, index) => {
      const probability = probabilities[index] ?? 0;
      bar.style.width = `${probability * 100}%`;
      row.classList.toggle("best", index === this.best);
      fill(value, answer ? share(probability) : "–");
    });
    fill(this.says, this.label ?? "–");
    fill(this.sure, answer ? share(this.confidence) : "");
    fill(this.foot, answer ? t("draw.latency", { ms: number(answer.latency_ms, 1) }) : "");
  }

  /** Whether it differs from what most say. */
  mark(isOdd) {
    this.element.classList.toggle("differs", isOdd);
  }
}
