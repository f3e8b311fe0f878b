// How good a run's model is: which classes it takes for which, and test images that it tells right and wrong.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { wordsOf } from "./refusal.js";
import { language, number, percent, t } from "./text.js";

const CELL_EXAMPLES = 40;
const LIMIT_MS = 120_000; // ten thousand images on one core, behind others
const FAINTEST = 4; // a share of 10 to the power of minus this is the least that is coloured

let kept = null; // the last answer, by the weights' digest: a change of language or colours need not ask again

/** The section of a run's evaluation; it comes with the weights. */
export function evaluation(id) {
  const body = h("div");
  const element = h("section.card.run-evaluation", { hidden: true }, h("h2", {}, t("run.evaluation")), body);
  let asked = null;
  return { element, update };

  function update({ model }) {
    element.hidden = !model.ready;
    if (!model.ready || asked === model.sha256) return;
    asked = model.sha256;
    read();
  }

  async function read() {
    const wanted = asked;
    fill(body, h("p.muted", { role: "status" }, t("run.evaluation.busy")));
    try {
      const isKept = kept?.sha256 === wanted && kept.job_id === id;
      const found = isKept ? kept : await get(`/jobs/${id}/evaluation`, { limitMs: LIMIT_MS });
      if (wanted !== asked) return; // of other weights, which are being read
      kept = found;
      fill(body, whole(found));
    } catch (error) {
      if (wanted !== asked) return;
      const again = h("button", { type: "button", onclick: read }, t("run.again_now"));
      fill(body, h("div.error", { role: "alert" }, absenceOf(error)), h("p.row.run-retry", {}, again));
    }
  }
}

const absenceOf = (error) =>
  error.status === 503 ? `${t("run.evaluation.unavailable")} ${wordsOf(error)}` : wordsOf(error);

/** The name of a class in the reader's language. */
const nameOf = (found, number) => found.classes[number][language === "zh" ? "label_zh" : "label"];

function whole(found) {
  const areNames = found.classes.some(({ label }) => label.length > 2); // clothes, not digits
  const examples = h("div.run-examples", { "aria-live": "polite" });
  const showAll = () =>
    fill(
      examples,
      gallery(found, t("run.wrong"), found.examples.wrong),
      h("p.small.muted", {}, t("run.wrong.read")),
      gallery(found, t("run.right"), found.examples.right),
    );
  showAll();
  const show = (label, predicted) => showCell(examples, found, { label, predicted }, showAll);
  return [
    h(
      "p",
      {},
      t("run.evaluation.text", {
        right: number(found.right),
        images: number(found.images),
        accuracy: percent(found.accuracy),
      }),
    ),
    found.partial && h("p.muted", {}, t("run.model.partial")),
    h(`div.run-evaluated${areNames ? ".named" : ""}`, {}, matrix(found, show), examples),
  ];
}

// --- the matrix ----------------------------------------------------------------------------------------------------------

function matrix(found, show) {
  const hint = t("run.matrix.hint");
  const told = h("p.run-cell-said.small", { "aria-hidden": "true" }, hint); // the cell itself says it to screen readers
  const tell = (event) => {
    const button = event.target.closest("button");
    fill(told, button?.getAttribute("aria-label") ?? hint);
  };
  const head = found.classes.map((_, number) => h("th", { scope: "col" }, h("span", {}, nameOf(found, number))));
  const score = (name) => h("th.number.run-score", { scope: "col" }, t(`run.matrix.${name}`));
  const rows = found.confusion.map((row, label) => rowOf(found, row, label, show));
  const table = h(
    "table.run-matrix",
    { onmouseover: tell, onkeydown: move },
    h("caption.small.muted", {}, t("run.matrix.caption")),
    h("thead", {}, h("tr", {}, h("td.run-corner"), head, score("recall"), score("precision"))),
    h("tbody", {}, rows),
  );
  table.addEventListener("focusin", tell);
  table.querySelector("button").tabIndex = 0;
  return h("div.run-confusion", {}, h("div.scroll", {}, table), told);
}

function rowOf(found, row, label, show) {
  const { images, recall, precision } = found.classes[label];
  const cells = row.map((count, predicted) => {
    const words = t("run.matrix.cell", {
      count: number(count),
      images: number(images),
      label: nameOf(found, label),
      predicted: nameOf(found, predicted),
    });
    const button = h(
      "button",
      { type: "button", tabIndex: -1, "aria-label": words, onclick: () => show(label, predicted) },
      String(count), // without a comma four digits fit a phone's cell
    );
    const kind = label === predicted ? "right" : count ? "wrong" : "none";
    return h("td", { className: kind, style: { "--heat": heat(count / images) } }, button);
  });
  const scores = [recall, precision].map((share) => h("td.number.run-score", {}, percent(share, 1)));
  return h("tr", {}, h("th", { scope: "row" }, nameOf(found, label)), cells, scores);
}

/** From 0 to 1 by the order of magnitude of a share: a few of a thousand are to be seen as well. */
const heat = (share) => (share > 0 ? Math.max(0, 1 + Math.log10(share) / FAINTEST).toFixed(3) : "0");

/** The cells are one stop of the tab key; arrows go from one to the next. */
function move(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const from = buttons.indexOf(event.target);
  const to = buttons[from + step];
  if (!step || !to || (Math.abs(step) === 1 && Math.floor(from / 10) !== Math.floor((from + step) / 10))) return;
  event.preventDefault();
  buttons[from].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

// --- examples ------------------------------------------------------------------------------------------------------------

/** The images of one cell in the place of all others. */
async function showCell(examples, found, { label, predicted }, showAll) {
  const back = h("button.quiet.small", { type: "button", onclick: showAll }, t("run.cell.back"));
  const title = t("run.cell", { label: nameOf(found, label), predicted: nameOf(found, predicted) });
  const count = found.confusion[label][predicted];
  fill(examples, h("h3.row", {}, title, back), h("p.muted", {}, t(count ? "run.evaluation.busy" : "run.cell.none")));
  if (!count) return;
  try {
    const asked = `label=${label}&predicted=${predicted}&examples=${CELL_EXAMPLES}`;
    const { examples: few } = await get(`/jobs/${found.job_id}/evaluation?${asked}`, { limitMs: LIMIT_MS });
    const images = [...few.wrong, ...few.right];
    const told = images.length < count ? t("run.cell.some", { shown: images.length, count: number(count) }) : null;
    fill(examples, gallery(found, title, images, back), told && h("p.muted.small", {}, told));
  } catch (error) {
    fill(examples, h("h3.row", {}, title, back), h("div.error", { role: "alert" }, wordsOf(error)));
  }
}

function gallery(found, title, images, ...more) {
  const empty = images.length ? null : h("p.muted", {}, t("run.cell.none"));
  return h(
    "div",
    {},
    h("h3.row", {}, title, more),
    empty,
    h(
      "ul.run-gallery",
      {},
      images.map((each) => digitOf(found, each)),
    ),
  );
}

function digitOf(found, { index, label, predicted, confidence, seen }) {
  const [is, was] = [nameOf(found, label), nameOf(found, predicted)];
  const isRight = label === predicted;
  const alt = t("run.example", { index: number(index), label: is, predicted: was });
  return h(
    "li",
    { className: isRight ? "right" : "wrong", title: alt },
    h("img", { src: `data:image/png;base64,${seen}`, width: 56, height: 56, alt }),
    h("span.run-said-as", {}, isRight ? is : [h("s", {}, was), is]),
    h("span.small.muted", {}, percent(confidence, confidence > 0.9995 ? 0 : 1)),
  );
}
