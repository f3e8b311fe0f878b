// A run's log as the lesson prints it, and the table of its epochs.

import { copied, copiedWords } from "./clipboard.js";
import { fill, h, renew } from "./dom.js";
import { duration, loss, number, percent, t } from "./text.js";

const EVERY = 200; // batches, as the lesson has it

/** What the lesson's program would have printed: a line for every 200 batches. With it, each epoch's accuracy when it is known. */
export function linesOf(history) {
  const ends = new Map(history.epochs.map((each) => [each.epoch, each]));
  const lines = [];
  let [epoch, stretch] = [0, -1];
  const end = () => ends.has(epoch) && lines.push(endOf(ends.get(epoch)));
  history.step.forEach((step, index) => {
    const now = Math.floor(step / history.stepsPerEpoch);
    const batch = step - now * history.stepsPerEpoch;
    if (now !== epoch) {
      end();
      [epoch, stretch] = [now, -1];
    }
    if (Math.floor(batch / EVERY) === stretch) return;
    stretch = Math.floor(batch / EVERY);
    lines.push(`epoch: ${epoch}, batch: ${batch}, loss is: ${float32(history.loss[index])}`);
  });
  end();
  return lines;
}

const endOf = ({ epoch, valid_accuracy }) => `epoch: ${epoch}, validation accuracy is: ${valid_accuracy}`;

/** As NumPy prints a float32: the shortest digits that name it. */
function float32(value) {
  if (value === null) return t("runs.not_finite");
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return String(short);
  }
  return String(Number(value.toPrecision(9)));
}

export function log() {
  const box = h("pre.run-log", { role: "log", "aria-live": "off", tabIndex: 0, "aria-label": t("run.log") });
  const told = h("p.hidden-text", { role: "status" }); // once an epoch: the lines come too fast to be read out
  const copy = h("button.quiet.small", { type: "button", disabled: true }, t("run.log.copy"));
  copy.onclick = async () => {
    fill(copy, copiedWords(await copied(`${box.textContent}\n`)));
  };
  const title = h("div.row", {}, h("h2", {}, t("run.log")), h("span.space"), copy);
  const element = h("section.card.run-log-card", {}, title, box, told);
  let [of, count] = [null, 0];
  return { element, update };

  function update(job, history) {
    if (!history?.step.length) return renew(box, job.status, () => h("span.muted", {}, t(emptyOf(job))));
    const lines = linesOf(history);
    if (history === of && lines.length === count) return;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    renew(box, lines, () => lines.join("\n"));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    copy.disabled = false;
    [of, count] = [history, lines.length];
    const last = history.epochs.at(-1);
    if (last)
      renew(told, last.epoch, () =>
        t("run.log.epoch", { epoch: last.epoch + 1, accuracy: percent(last.valid_accuracy) }),
      );
  }
}

const emptyOf = (job) => (job.terminal ? "run.log.none" : "run.log.soon");

// --- the epochs ----------------------------------------------------------------------------------------------------------

const COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "rate", "speed", "seconds"];

export function epochs() {
  const body = h("tbody");
  const empty = h("p.muted");
  const head = h(
    "tr",
    {},
    COLUMNS.map((name) => h("th.number", { scope: "col" }, t(`run.epochs.${name}`))),
  );
  const table = h("table", { "aria-label": t("run.epochs") }, h("thead", {}, head), body);
  const element = h("section.card", {}, h("h2", {}, t("run.epochs")), empty, h("div.scroll", {}, table));
  return { element, update };

  function update({ terminal }, history) {
    const known = history?.epochs ?? [];
    renew(empty, terminal, () => t(terminal ? "run.epochs.never" : "run.epochs.none"));
    empty.hidden = known.length > 0;
    table.hidden = known.length === 0;
    const best = Math.max(...known.map((each) => each.valid_accuracy));
    renew(body, known, () => known.map((each) => rowOf(each, each.valid_accuracy === best)));
  }
}

function rowOf(each, isBest) {
  const cells = [
    loss(each.train_loss),
    loss(each.valid_loss),
    isBest ? h("strong", { title: t("run.epochs.best") }, percent(each.valid_accuracy)) : percent(each.valid_accuracy),
    Number(each.learning_rate.toPrecision(4)),
    number(each.images_per_s),
    duration(each.seconds),
  ];
  return h(
    "tr",
    {},
    h("th.number", { scope: "row" }, each.epoch + 1),
    cells.map((cell) => h("td.number", {}, cell)),
  );
}
