// The choices that the three forms share: optimizers, rates and data sets, drawn as the charts draw them.

import { h } from "./dom.js";
import { colouring, dashOf } from "./encoding.js";
import { folded, renewed } from "./form.js";
import { swatch } from "./sparkline.js";
import { language, said, t } from "./text.js";

export const LESSON_RATES = ["0.1", "0.01", "0.001"];
const WHERE_RATES_ARE = ["initial", "max_learning_rate"];

/** A short line with an optimizer's dashes, in a rate's colour where there is one: what its curve will look like. */
export function sample(optimizer, rate, width = 44) {
  const stroke = rate === undefined ? "currentColor" : colouring([{ learning_rate: rate }])({ learning_rate: rate });
  return swatch(stroke, dashOf({ optimizer: { name: optimizer } }), width);
}

/** Cards, one (`radio`) or several (`checkbox`) of which are chosen. */
function cards(type, name, choices, options) {
  return choices.map((choice) => card(type, name, choice, options));
}

function card(type, name, choice, { isChosen, onPick, picture = () => null, more = () => null }) {
  const [title, about] = ["title", "about"].map((part) => `${name}-${choice.name}-${part}`);
  const input = h("input", {
    type,
    name,
    value: choice.name,
    checked: isChosen(choice),
    "aria-labelledby": title,
    "aria-describedby": about,
  });
  input.onchange = () => onPick(choice, input);
  const head = h("span.new-card-title", {}, h("strong", { id: title }, choice.name), picture(choice));
  const text = h("span.small.muted", { id: about }, said(choice.summary));
  return h("label.new-card", {}, input, h("span.new-card-text", {}, head, text, more(choice)));
}

function group(legend, role, ...children) {
  return h("fieldset.new-group", { role }, h("legend", {}, legend), children);
}

/** The lesson's optimizers, and the others behind a button; they are shown when one of them is chosen. */
function optimizerCards(form, type, optimizers, options) {
  const [own, others] = [true, false].map((isLesson) => optimizers.filter(({ lesson }) => lesson === isLesson));
  const isOpen = form.values.get("#more") ?? others.some(options.isChosen);
  const drawn = { ...options, picture: ({ name }) => sample(name) };
  const more = h("div.new-cards", { id: "more-optimizers", hidden: !isOpen }, cards(type, "optimizer", others, drawn));
  const title = h("strong");
  const names = h("span.small.muted", {}, others.map(({ name }) => name).join(" · "));
  const button = h("button.new-card.new-more", { type: "button", "aria-controls": more.id }, title, names);
  const show = (isShown) => {
    more.hidden = !isShown;
    button.setAttribute("aria-expanded", String(isShown));
    title.textContent = t(isShown ? "new.fewer_optimizers" : "new.more_optimizers", { n: others.length });
  };
  button.onclick = () => {
    form.values.set("#more", more.hidden);
    show(more.hidden);
  };
  show(isOpen);
  return [h("div.new-cards", {}, cards(type, "optimizer", own, drawn), button), more];
}

/** One optimizer, and below it that optimizer's own parameters. */
export function oneOptimizer(form, { optimizers }) {
  const key = "/optimizer/name";
  const chosen = () => form.values.get(key) ?? "adam";
  const parameters = renewed(() => {
    const found = optimizers.find(({ name }) => name === chosen());
    return found ? ownParameters(form, found) : [];
  });
  const onPick = ({ name }) => {
    form.values.set(key, name);
    parameters.renew();
    form.set(key, name, field);
  };
  const isChosen = ({ name }) => name === chosen();
  const element = group(
    t("new.optimizer"),
    "radiogroup",
    optimizerCards(form, "radio", optimizers, { isChosen, onPick }),
  );
  const field = form.field({
    pointer: key,
    owns: "/optimizer",
    name: "optimizer",
    control: element,
    read: chosen,
    write: (name) => element.querySelector(`input[value="${CSS.escape(name)}"]`)?.click(),
  });
  element.append(field.problem, parameters.element);
  return element;
}

function ownParameters(form, { name, parameters }) {
  if (!parameters.length) return h("p.new-hint", {}, t("new.no_parameters", { name }));
  const fields = parameters.map((each) => form.parameter(each, { at: "/optimizer", of: name }));
  return folded(form, "parameters", t("new.parameters", { name }), h("div.new-fields", {}, fields));
}

/** Several optimizers; the lesson's when nothing was chosen. */
export function severalOptimizers(form, { optimizers }) {
  const key = "/optimizers";
  const lesson = optimizers.filter((each) => each.lesson).map(({ name }) => name);
  const chosen = () => form.values.get(key) ?? lesson;
  const onPick = (_, { checked, value }) => {
    const wanted = new Set(chosen());
    if (checked) wanted.add(value);
    else wanted.delete(value);
    form.set(
      key,
      optimizers.map(({ name }) => name).filter((name) => wanted.has(name)),
      field,
    );
  };
  const isChosen = ({ name }) => chosen().includes(name);
  const element = group(
    t("new.optimizers"),
    "group",
    optimizerCards(form, "checkbox", optimizers, { isChosen, onPick }),
  );
  const read = () => (String(chosen()) === String(lesson) ? undefined : chosen());
  const field = form.field({ pointer: key, name: "optimizers", control: element, read, write: () => {} });
  element.append(field.problem);
  return element;
}

function rateChip(type, rate, properties) {
  const value = Number(rate);
  const input = h("input", { type, name: "rate", value: rate, ...properties });
  const colour = colouring([{ learning_rate: value }])({ learning_rate: value });
  return h(
    "label.new-chip",
    {},
    input,
    h("span.new-dot", { style: { background: colour }, "aria-hidden": "true" }),
    rate,
  );
}

/** Where the chosen rate stands in the body: schedules call it by different names. */
export function rateParameter(schedule) {
  const names = schedule?.parameters.map(({ name }) => name) ?? [];
  return WHERE_RATES_ARE.find((name) => names.includes(name)) ?? null;
}

/** One rate: one of the lesson's, or a number of one's own. `parameter` is its name where there is a schedule. */
export function oneRate(form, { parameter, parse }) {
  const key = "/rate";
  const chosen = () => form.values.get(key) ?? "0.001";
  const chips = LESSON_RATES.map((rate) =>
    rateChip("radio", rate, { checked: rate === chosen(), onchange: () => take(rate, "") }),
  );
  const { own, label } = ownRate("own_rate", LESSON_RATES.includes(chosen()) ? "" : chosen(), "0.003");
  own.oninput = () => take(own.value.trim() || LESSON_RATES.at(-1), own.value);
  const take = (rate, typed) => {
    own.value = typed;
    for (const { control } of chips) control.checked = control.value === rate;
    form.set(key, rate, field);
  };
  const element = group(t(parameter ? "new.rate_first" : "new.rate"), "group", h("div.row", {}, chips, label));
  const field = form.field({
    pointer: parameter ? `/learning_rate/${parameter}` : "/learning_rate",
    name: "learning_rate",
    control: own,
    read: () => parse(chosen()),
    write: (rate) => take(rate, rate),
  });
  element.append(field.problem, h("p.new-hint", {}, t("new.rate_hint")));
  return element;
}

function ownRate(key, value, placeholder) {
  const own = h("input", {
    type: "text",
    name: "own-rate",
    inputMode: "decimal",
    spellcheck: false,
    value,
    placeholder,
  });
  own.setAttribute("aria-label", t(`new.${key}.label`));
  return { own, label: h("label.new-own-rate", {}, h("span.muted", {}, t(`new.${key}`)), own) };
}

/** Several rates: the lesson's three, and more. */
export function severalRates(form, { parse }) {
  const ticked = () => form.values.get("/rates") ?? LESSON_RATES;
  const onchange = () =>
    form.set(
      "/rates",
      chips
        .map(({ control }) => control)
        .filter(({ checked }) => checked)
        .map(({ value }) => value),
      field,
    );
  const chips = LESSON_RATES.map((rate) => rateChip("checkbox", rate, { checked: ticked().includes(rate), onchange }));
  const { own, label } = ownRate("own_rates", form.values.get("/rates/own") ?? "", "0.3, 0.03");
  own.oninput = () => form.set("/rates/own", own.value, field);
  const read = () => {
    const rates = [...ticked().map(Number), ...parse(own.value)];
    return String(rates) === String(LESSON_RATES.map(Number)) ? undefined : rates;
  };
  const element = group(t("new.rates"), "group", h("div.row", {}, chips, label));
  const field = form.field({ pointer: "/learning_rates", name: "learning_rates", control: own, read, write: () => {} });
  element.append(field.problem);
  return element;
}

/** The data set, with what is in it. */
export function oneDataset(form, { datasets }) {
  const key = "/dataset";
  const chosen = () => form.values.get(key) ?? datasets[0].name;
  const onPick = ({ name }) => form.set(key, name, field);
  const isChosen = ({ name }) => name === chosen();
  const more = ({ classes, classes_zh }) =>
    h("span.small.muted", {}, (language === "zh" ? classes_zh : classes).join(" · "));
  const element = group(
    t("new.field.dataset"),
    "radiogroup",
    h("div.new-cards.new-wide", {}, cards("radio", "dataset", datasets, { isChosen, onPick, more })),
  );
  const field = form.field({
    pointer: key,
    name: "dataset",
    control: element,
    read: () => (chosen() === datasets[0].name ? undefined : chosen()),
    write: (name) => element.querySelector(`input[value="${CSS.escape(name)}"]`)?.click(),
  });
  element.append(field.problem);
  return element;
}
