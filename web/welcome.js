// The first screen, before there is any run.

import { h } from "./dom.js";
import { t } from "./text.js";

const WAYS = [
  ["lesson", "#/new?do=lesson"],
  ["one", "#/new"],
  ["rate", "#/new?do=rate"],
];

export function welcome() {
  const ways = WAYS.map(([name, href]) =>
    h(
      "a.way.card",
      { href },
      h("strong", {}, t(`runs.welcome.${name}`)),
      h("span.muted", {}, t(`runs.welcome.${name}_text`)),
    ),
  );
  return h(
    "section.welcome",
    {},
    h("h1", {}, t("runs.welcome.title")),
    h("p.lead", {}, t("runs.welcome.text")),
    h("div.ways", {}, ways),
    h("p", {}, h("a", { href: "#/explain" }, t("runs.welcome.explain"))),
  );
}
