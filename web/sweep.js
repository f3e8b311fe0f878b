// One sweep above its runs: how far it is, what came of it by configuration, and whether the best two differ by more than noise.

import { get, post } from "./api.js";
import { fill, h, renew } from "./dom.js";
import { live } from "./live.js";
import { wordsOf } from "./refusal.js";
import { duration, loss, number, percent, said, t } from "./text.js";

const AGAIN_MS = 2000;

/** The card of a sweep; it follows the sweep until it has ended or `gone()` is called. */
export function sweepCard(id) {
  const card = new Card(id);
  return { element: card.element, gone: () => card.gone() };
}

/** Its parts stay what they are while their contents change, so that nobody loses their place. */
class Card {
  #id;
  #stop = new AbortController();
  #timer = null;
  #isAsking = false;
  #head = h("div.row", {}, h("span.muted", {}, t("sweep.loading")));
  #cancel = h("button.danger", { type: "button", hidden: true, onclick: () => this.#cancelled() }, t("sweep.cancel"));
  #error = h("p.error", { role: "alert", hidden: true });
  #progress = h("progress", { max: 1, value: 0, hidden: true, "aria-label": t("sweep.progress") });
  #noise = h("p");
  #table = h("div.scroll");
  #details = h("details", { hidden: true }, h("summary", {}, t("sweep.table")), this.#table);

  constructor(id) {
    this.#id = id;
    this.element = h(
      "section.card.sweep",
      { "aria-label": t("sweep.title") },
      h("div.row", {}, this.#head, h("span.space"), this.#cancel),
      this.#error,
      this.#progress,
      this.#noise,
      this.#details,
    );
    live.addEventListener("change", () => this.#soon(), { signal: this.#stop.signal });
    this.#ask();
  }

  gone() {
    this.#stop.abort();
    clearTimeout(this.#timer);
  }

  #soon() {
    if (!this.#stop.signal.aborted && !this.#isAsking) this.#timer ??= setTimeout(() => this.#ask(), AGAIN_MS);
  }

  async #ask() {
    this.#timer = null;
    this.#isAsking = true;
    try {
      const sweep = await get(`/sweeps/${this.#id}`, { signal: this.#stop.signal });
      this.#show(sweep);
      if (sweep.terminal) this.#stop.abort();
    } catch (error) {
      if (error.status === 404) this.#tell(t("sweep.gone"));
      // what else is wrong the banner says; what was shown stays, and it is asked again
    }
    this.#isAsking = false;
    this.#soon();
  }

  #tell(words) {
    renew(this.#head, words, () => null);
    this.#error.hidden = !words;
    fill(this.#error, words);
  }

  #show(sweep) {
    const { jobs, ended, fraction } = sweep.progress;
    renew(this.#head, [sweep.name, sweep.status, ended], () => [
      h("h2", {}, sweep.name ?? t("sweep.title")),
      h("span.chip", {}, t(`sweep.status.${sweep.status}`)),
      h("span.muted", {}, t("sweep.ended", { ended, n: jobs })),
    ]);
    this.#cancel.hidden = sweep.terminal;
    this.#cancel.setAttribute("aria-disabled", sweep.status === "cancelling");
    this.#progress.hidden = sweep.terminal;
    this.#progress.value = fraction;
    renew(this.#noise, sweep.table.noise, () => said(sweep.table.noise));
    this.#details.hidden = false;
    renew(this.#table, sweep.table, () => groups(sweep.table));
  }

  /** The first press asks, the second does it: a thumb finds this place too easily. */
  async #cancelled() {
    if (this.#cancel.getAttribute("aria-disabled") === "true") return;
    if (!this.#cancel.dataset.asked) {
      this.#cancel.dataset.asked = "yes";
      fill(this.#cancel, t("sweep.cancel_really"));
      return;
    }
    this.#cancel.setAttribute("aria-disabled", "true");
    try {
      await post(`/sweeps/${this.#id}/cancel`);
      this.#tell("");
      live.refresh().catch(() => {}); // the next poll tells it as well
    } catch (problem) {
      this.#tell(wordsOf(problem));
      this.#cancel.setAttribute("aria-disabled", "false");
    }
    this.#ask();
  }
}

function groups(table) {
  const head = { label: "", accuracy: ".number", loss: ".number", steps: ".number", seconds: ".number", verdict: "" };
  return h(
    "div.scroll",
    {},
    h(
      "table",
      {},
      h("caption.small.muted", {}, t("sweep.caption", { target: percent(table.target_accuracy, 0) })),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          Object.entries(head).map(([name, kind]) => h(`th${kind}`, { scope: "col" }, t(`sweep.column.${name}`))),
        ),
      ),
      h(
        "tbody",
        {},
        table.rows.map((row) => group(row, table.best?.label === row.label)),
      ),
    ),
  );
}

function group(row, isBest) {
  const verdicts = Object.entries(row.verdicts).map(
    ([outcome, n]) => `${t(`verdict.${outcome}`)}${n > 1 ? ` ×${n}` : ""}`,
  );
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, row.label, isBest && h("span.chip.good", {}, t("sweep.best"))),
    h("td.number", {}, spread(row.test_accuracy, percent)),
    h("td.number", {}, spread(row.final_loss, loss)),
    h(
      "td.number",
      {},
      spread(row.steps_to_target, (value) => number(value)),
    ),
    h("td.number", {}, spread(row.seconds_to_target, duration)),
    h("td", {}, verdicts.join(", ")),
  );
}

/** A mean, and the range over the seeds where there are several. */
function spread(found, text) {
  if (!found) return "–";
  return found.n > 1
    ? [text(found.mean), h("small.muted", {}, ` ${text(found.min)} … ${text(found.max)}`)]
    : text(found.mean);
}
