// The form of a learning-rate range test.

import { oneDataset, oneOptimizer } from "./choose.js";
import { h } from "./dom.js";
import { folded } from "./form.js";
import { t } from "./text.js";
import { advanced, recipe } from "./train.js";

export const find = {
  path: "/lr-range-tests",
  place: ({ id }) => `#/rate/${id}`,
  query: { optimizer: "/optimizer/name", epochs: "/epochs", dataset: "/dataset", seed: "/seed" },
  fields: (form, known) => {
    const parameters = known.request("RangeTestRequest");
    return [
      h("p", {}, t("new.find_text")),
      oneOptimizer(form, known),
      oneDataset(form, known),
      folded(
        form,
        "advanced",
        t("new.advanced"),
        recipe(form, parameters, ["start", "end", "epochs", "batch_size", "seed"]),
        advanced(form, known, parameters),
      ),
    ];
  },
};
