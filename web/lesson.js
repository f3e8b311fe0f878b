// The form of a sweep, which is the lesson as long as nothing is changed in it.

import { oneDataset, sample, severalOptimizers, severalRates } from "./choose.js";
import { h } from "./dom.js";
import { folded, listOf } from "./form.js";
import { number, t } from "./text.js";
import { advanced, recipe } from "./train.js";

const SEEDS = [1, 3, 5];

export const lesson = {
  path: "/sweeps",
  place: ({ id }) => `#/?sweep=${id}`,
  query: { epochs: "/epochs", dataset: "/dataset" },
  fields: (form, known) => {
    const parameters = known.request("SweepSpec");
    return [
      h("p", {}, t("new.lesson_text")),
      h("div.card.new-matrix", { id: "matrix" }),
      folded(
        form,
        "sweep",
        t("new.sweep_own"),
        severalOptimizers(form, known),
        severalRates(form, { parse: listOf }),
        seeds(form),
        asha(form),
        oneDataset(form, known),
        recipe(form, parameters, ["epochs", "batch_size"]),
        folded(
          form,
          "advanced",
          t("new.advanced"),
          advanced(form, known, parameters),
          recipe(form, parameters, ["target_accuracy", "max_concurrent"]),
        ),
      ),
    ];
  },
  show: (form, preview) => form.element.querySelector("#matrix").replaceChildren(matrix(preview.jobs)),
};

/** How often each configuration is trained. */
function seeds(form) {
  const key = "/seeds";
  const chosen = () => form.values.get(key) ?? 1;
  const chips = SEEDS.map((count) => {
    const input = h("input", {
      type: "radio",
      name: "seeds",
      value: count,
      checked: count === chosen(),
      onchange: () => form.set(key, count, field),
    });
    return h("label.new-chip", {}, input, number(count));
  });
  const control = h(
    "fieldset.new-group",
    { role: "radiogroup" },
    h("legend", {}, t("new.seeds")),
    h("div.row", {}, chips),
  );
  const read = () => (chosen() === 1 ? undefined : Array.from({ length: chosen() }, (_, seed) => seed));
  const field = form.field({ pointer: key, name: "seeds", control, read, write: () => {} });
  control.append(field.problem, h("p.new-hint", {}, t("new.seeds_hint")));
  return control;
}

function asha(form) {
  const key = "/early_stopping";
  const input = h("input", {
    type: "checkbox",
    checked: form.values.get(key) ?? false,
    onchange: () => form.set(key, input.checked, field),
  });
  const field = form.field({
    pointer: key,
    name: "early_stopping",
    control: input,
    read: () => (input.checked ? "asha" : undefined),
    write: () => {},
  });
  return h(
    "div.new-field.new-asha",
    {},
    h("label.row", {}, input, h("span", {}, t("new.asha"))),
    h("p.new-hint", {}, t("new.asha_hint")),
    field.problem,
  );
}

/** The runs of a sweep as their curves will be drawn: a row for each optimizer, a column for each rate. */
function matrix(jobs) {
  const optimizers = [...new Set(jobs.map(({ optimizer }) => optimizer.name))];
  const rates = [...new Set(jobs.map(({ learning_rate: rate }) => rate))];
  const each = jobs.length / optimizers.length / rates.length;
  const cell = (name, rate) =>
    h(
      "td",
      {},
      sample(name, rate, 110),
      h("span.hidden-text", {}, `${name} ${rate}`),
      each > 1 && h("span.small.muted", {}, ` ×${each}`),
    );
  const rows = optimizers.map((name) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      rates.map((rate) => cell(name, rate)),
    ),
  );
  const head = h(
    "tr",
    {},
    h("td", {}),
    rates.map((rate) => h("th", { scope: "col" }, String(rate))),
  );
  return h(
    "div.scroll",
    {},
    h("table", {}, h("caption.small.muted", {}, t("new.matrix")), h("thead", {}, head), h("tbody", {}, rows)),
  );
}
