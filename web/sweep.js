// One sweep above its runs: how far it is, what came of it by configuration, and whether the best two differ by more than noise.

import { get, post } from "./api.js";
import { fill, h } from "./dom.js";
import { live } from "./live.js";
import { duration, loss, number, percent, said, t } from "./text.js";

const AGAIN_MS = 2000;

/** The card of a sweep; it follows the sweep until it has ended or `gone()` is called. */
export function sweepCard(id) {
  const element = h("section.card.sweep", { "aria-label": t("sweep.title") }, h("p.muted", {}, t("sweep.loading")));
  const stop = new AbortController();
  let timer = null;
  let isAsking = false;
  const ask = async () => {
    timer = null;
    isAsking = true;
    try {
      const sweep = await get(`/sweeps/${id}`, { signal: stop.signal });
      show(element, sweep, ask);
      if (sweep.terminal) stop.abort();
    } catch (error) {
      if (stop.signal.aborted) return;
      fill(element, h("p.error", {}, error.status === 404 ? t("sweep.gone") : error.message));
    } finally {
      isAsking = false;
    }
    soon();
  };
  const soon = () => {
    if (!stop.signal.aborted && !isAsking) timer ??= setTimeout(ask, AGAIN_MS);
  };
  live.addEventListener("change", soon, { signal: stop.signal });
  ask();
  return {
    element,
    gone() {
      stop.abort();
      clearTimeout(timer);
    },
  };
}

function show(element, sweep, again) {
  const { jobs, ended, fraction } = sweep.progress;
  const error = h("p.error", { role: "alert", hidden: true });
  fill(
    element,
    h(
      "div.row",
      {},
      h("h2", {}, sweep.name ?? t("sweep.title")),
      h("span.chip", {}, t(`sweep.status.${sweep.status}`)),
      h("span.muted", {}, t("sweep.ended", { ended, n: jobs })),
      h("span.space"),
      !sweep.terminal && cancelButton(sweep, error, again),
    ),
    error,
    !sweep.terminal && h("progress", { max: 1, value: fraction, "aria-label": t("sweep.progress") }),
    sweep.table.noise && h("p", {}, said(sweep.table.noise)),
    h(
      "details",
      { open: element.querySelector("details")?.open ?? false },
      h("summary", {}, t("sweep.table")),
      groups(sweep.table),
    ),
  );
}

function cancelButton(sweep, error, again) {
  const cancel = async (event) => {
    event.target.disabled = true;
    try {
      await post(`/sweeps/${sweep.id}/cancel`);
      await live.refresh();
      again();
    } catch (problem) {
      error.hidden = false;
      fill(error, problem.message);
      event.target.disabled = false;
    }
  };
  return h(
    "button.danger",
    { type: "button", onclick: cancel, disabled: sweep.status === "cancelling" },
    t("sweep.cancel"),
  );
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
