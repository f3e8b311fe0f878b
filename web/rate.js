// (stub)
import { fill, h } from "./dom.js";
import { t } from "./text.js";

export function mount(root) {
  fill(root, h("h1", {}, t("title.rate")));
}
