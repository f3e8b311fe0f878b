// What happened to a run, the checkpoints it left, and its spec.

import { get } from "./api.js";
import { copied, copiedWords } from "./clipboard.js";
import { fill, h, renew } from "./dom.js";
import { bytes, duration, moment, number, percent, t } from "./text.js";

/** The run's events; read again whenever its status changes or an epoch ends. */
export function events(id) {
  const [list, problem] = [h("ol.run-events"), h("p.muted", { hidden: true }, t("run.events.away"))];
  const kept = h("div");
  const fold = h("details", {}, h("summary", {}, t("run.checkpoints")), kept);
  const element = h("section.card", {}, h("h2", {}, t("run.events")), problem, list, fold);
  let seen = "";
  return { element, update };

  async function update(job, history) {
    const now = `${job.status} ${history?.epochs.length ?? 0}`;
    if (now === seen) return;
    seen = now;
    try {
      const [log, files] = await Promise.all([get(`/jobs/${id}/events`), get(`/jobs/${id}/checkpoints`)]);
      if (now !== seen) return; // a later answer is on its way
      renew(list, [log.events, now], () => log.events.map((event) => eventOf(event, history)));
      renew(kept, files.checkpoints, () => checkpointsOf(files.checkpoints));
      problem.hidden = true;
    } catch {
      seen = ""; // the next change asks again
      problem.hidden = list.childElementCount > 0;
    }
  }
}

function eventOf(event, history) {
  const words = event.type === "epoch" ? t("run.event.epoch", { epoch: event.epoch + 1 }) : t(`status.${event.status}`);
  const at = event.at && h("time.muted.small", { dateTime: event.at }, moment(event.at));
  const by = event.worker && h("span.muted.small", {}, t("run.event.by", { worker: event.worker }));
  const ended = event.type === "epoch" && history?.epochs.find((each) => each.epoch === event.epoch);
  const result = ended && { accuracy: percent(ended.valid_accuracy), time: duration(ended.seconds) };
  const message = result && h("span.muted.small", {}, t("run.event.result", result));
  return h("li", { dataset: { type: event.type } }, h("span", {}, words), by ?? message, at);
}

function checkpointsOf(checkpoints) {
  if (!checkpoints.length) return h("p.muted", {}, t("run.checkpoints.none"));
  const head = ["step", "epoch", "accuracy", "size"].map((name) =>
    h("th.number", { scope: "col" }, t(`run.checkpoints.${name}`)),
  );
  const rows = checkpoints.map((file) =>
    h(
      "tr",
      { title: file.sha256 },
      h("td.number", {}, number(file.step)),
      h("td.number", {}, number(file.epoch + 1)),
      h("td.number", {}, percent(file.metrics?.valid_accuracy)),
      h("td.number", {}, bytes(file.size_bytes)),
    ),
  );
  return h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

/** The run's spec in full, as the server resolved it. */
export function spec() {
  const text = h("pre", { tabIndex: 0, "aria-label": t("run.spec") });
  const copy = h("button.quiet.small", { type: "button" }, t("run.spec.copy"));
  const element = h("details.card", {}, h("summary", {}, t("run.spec")), h("div.row", {}, h("span.space"), copy), text);
  return { element, update };

  function update(job) {
    const whole = JSON.stringify(job.spec, null, 2);
    renew(text, whole, () => whole);
    copy.onclick = async () => {
      fill(copy, copiedWords(await copied(whole)));
    };
  }
}
