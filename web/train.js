// The form of one job, and how a job's spec is put into it again.

import { oneDataset, oneOptimizer, oneRate, rateParameter } from "./choose.js";
import { h } from "./dom.js";
import { bareObject, folded, numberOf, renewed } from "./form.js";
import { said, t } from "./text.js";

const SCHEDULE = "/learning_rate/schedule";
const CLIP = "/grad_clip/type";
const OFTEN = ["epochs", "batch_size", "seed"];
const SELDOM = [
  "weight_decay",
  "log_every",
  "on_divergence",
  "device",
  "precision",
  "to_static",
  "max_runtime_s",
  "name",
  "tags",
];

/** What differs from form to form: where it posts to, and what its fields are. */
export const train = {
  path: "/jobs",
  place: ({ id }) => `#/run/${id}`,
  query: { optimizer: "/optimizer/name", rate: "/rate", epochs: "/epochs", dataset: "/dataset", seed: "/seed" },
  fields: (form, known) => {
    const parameters = known.request("JobSpec");
    return [
      oneOptimizer(form, known),
      rateAndSchedule(form, known),
      oneDataset(form, known),
      recipe(form, parameters, OFTEN),
      folded(form, "advanced", t("new.advanced"), advanced(form, known, parameters)),
    ];
  },
};

/** Fields of the request, as its schema has them. */
export const recipe = (form, parameters, names) =>
  h(
    "div.new-fields",
    {},
    names.map((name) => form.parameter(parameters[name])),
  );

/** What few people change: the same in every form. */
export function advanced(form, { clips }, parameters) {
  return [clipping(form, clips), recipe(form, parameters, SELDOM)];
}

function rateAndSchedule(form, { schedules }) {
  const offered = schedules.filter(({ name }) => name !== "range_test"); // it has a form of its own
  const chosen = () => offered.find(({ name }) => name === form.values.get(SCHEDULE));
  const rate = renewed(() => oneRate(form, { parameter: rateParameter(chosen()), parse: numberOf }));
  const { element } = choice(form, {
    key: SCHEDULE,
    owns: "/learning_rate",
    choices: offered,
    none: t("new.fixed_rate"),
    label: t("new.schedule"),
    skip: (schedule) => rateParameter(schedule),
    onPick: rate.renew,
  });
  return [rate.element, folded(form, "schedule", t("new.schedule_title"), element)];
}

function clipping(form, clips) {
  const about = {
    key: CLIP,
    owns: "/grad_clip",
    choices: clips,
    none: t("new.no_clip"),
    label: t("new.field.grad_clip"),
  };
  return choice(form, { ...about, skip: () => null, onPick: () => {} }).element;
}

/** One of several kinds of objects, or none of them, and the parameters of the one that is chosen. */
function choice(form, { key, owns, choices, none, label, skip, onPick }) {
  const chosen = () => choices.find(({ name }) => name === form.values.get(key));
  const parameters = renewed(() => {
    const kind = chosen();
    const own = neededFirst(kind?.parameters.filter(({ name }) => name !== skip(kind)) ?? []);
    const fields = own.map((each) => form.parameter(each, { at: owns, of: kind.name }));
    return kind ? [h("p.new-hint", {}, withCode(said(kind.summary))), h("div.new-fields", {}, fields)] : [];
  });
  const options = [h("option", { value: "" }, none), ...choices.map(({ name }) => h("option", { value: name }, name))];
  const select = h("select", { name: key }, options);
  select.value = chosen()?.name ?? "";
  select.onchange = () => {
    form.values.set(key, select.value);
    parameters.renew();
    onPick();
    form.set(key, select.value, field);
  };
  const field = form.field({
    pointer: key,
    owns,
    name: label,
    control: select,
    read: () => select.value || undefined,
    write: () => {},
  });
  const element = h(
    "div.new-part",
    {},
    h("label.new-field.new-select", {}, h("span", {}, label), select),
    field.problem,
    parameters.element,
  );
  return { element };
}

const neededFirst = (parameters) => [...parameters].sort((one, other) => other.required - one.required);

/** The server's text, in which `names` stand between accents. */
const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

/** A body as short as it can be: an optimizer without parameters of its own is its name. */
export function shortened(body) {
  const { optimizer } = body;
  return optimizer && Object.keys(optimizer).length === 1 ? { ...body, optimizer: optimizer.name } : body;
}

// --- a job's spec, again -----------------------------------------------------------------------------------------------------

/** What the form would have been filled in with for this spec. */
export function valuesOf({ optimizer, learning_rate: rate, grad_clip: clip, ...spec }, known) {
  const values = new Map();
  const parametersOf = (choices, name) => choices.find((each) => each.name === name)?.parameters ?? [];
  const { name, ...own } = optimizer;
  values.set("/optimizer/name", name);
  take(values, own, parametersOf(known.optimizers, name), { of: name, at: "/optimizer" });
  if (typeof rate === "number") values.set("/rate", String(rate));
  else takeSchedule(values, rate, known.schedules);
  if (clip) {
    values.set(CLIP, clip.type);
    take(values, clip, parametersOf(known.clips, clip.type), { of: clip.type, at: "/grad_clip" });
  }
  take(values, spec, Object.values(known.request("JobSpec")), {});
  for (const [part, keys] of [
    ["schedule", [SCHEDULE]],
    ["advanced", [CLIP, ...SELDOM.map((each) => `/${each}`)]],
  ]) {
    if (keys.some((key) => values.has(key))) values.set(`#${part}`, true);
  }
  return values;
}

function takeSchedule(values, { schedule, ...own }, schedules) {
  const kind = schedules.find(({ name }) => name === schedule);
  if (schedule === "range_test") return take(values, own, kind.parameters, {}); // its form has them at the top
  const parameter = rateParameter(kind);
  values.set(SCHEDULE, schedule);
  if (parameter) values.set("/rate", String(own[parameter]));
  take(
    values,
    own,
    kind.parameters.filter(({ name }) => name !== parameter),
    { of: schedule, at: "/learning_rate" },
  );
}

/** Put what is not as it is by default where a form finds it. */
function take(values, object, parameters, { of = "", at = "" }) {
  for (const { name, default: preset, schema } of parameters) {
    const value = object[name];
    const inner = bareObject(schema);
    if (value === null || value === undefined || value === preset) continue;
    if (inner) take(values, value, inner, { of, at: `${at}/${name}` });
    else if (typeof value === "boolean") values.set(`${of}${at}/${name}`, value);
    else if (asTyped(value)) values.set(`${of}${at}/${name}`, asTyped(value));
  }
}

function asTyped(value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object")
    return Object.entries(value)
      .map((pair) => pair.join("="))
      .join(", ");
  return String(value);
}
