// Forms for requests: each field stands for a place in the JSON body (a JSON Pointer), and shows what the server says of it.
// Nothing is checked here: what somebody typed goes to the server, which knows the rules.

import { parametersOf } from "./catalogue.js";
import { add, fill, h } from "./dom.js";
import { isMissing, worded } from "./refusal.js";
import { amount, has, t } from "./text.js";

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const MOST_SUGGESTED = 12;
let ids = 0;

/** What somebody typed as a number; what is none stays text, and the server says so. */
export function numberOf(text) {
  const value = Number(text);
  return NUMBER.test(text.trim()) && Number.isFinite(value) ? value : text.trim();
}

/** The parts of a list that somebody typed with commas, Chinese ones too. */
export const listOf = (text) =>
  text
    .split(/[,，、;；\s]+/)
    .filter((part) => part)
    .map(numberOf);

/** `{key: value}` of `key=value, key=value`. */
function tagsOf(text) {
  const parts = text.split(/[,，]/).filter((part) => part.trim());
  return Object.fromEntries(
    parts.map((part) => /^\s*([^=]*?)\s*(?:=\s*(.*?)\s*)?$/s.exec(part).slice(1)).map(([k, v = ""]) => [k, v]),
  );
}

/** Put a value where its names lead, making the objects on the way. */
function place(object, [name, ...rest], value) {
  if (!rest.length) object[name] = value;
  else {
    object[name] ??= {};
    place(object[name], rest, value);
  }
}

/** A schema without the null that it may be as well. */
const bare = (schema) => schema.anyOf?.find(({ type }) => type !== "null") ?? schema;

/** The parameters of an object that a schema describes; null where it is of anything else. */
export function bareObject(schema) {
  const kind = bare(schema);
  return kind.type === "object" && kind.properties ? Object.values(parametersOf(kind)) : null;
}

/** What a number may be, in signs that need no language: `1 – 1,000`, `0 ≤ … < 1`, `> 0`. Bounds nobody comes to are not said. */
function bounds({ minimum, maximum, exclusiveMinimum, exclusiveMaximum, type }) {
  const from = minimum ?? exclusiveMinimum;
  const to = (maximum ?? exclusiveMaximum) < 1e6 ? (maximum ?? exclusiveMaximum) : undefined;
  if (from === undefined) return "";
  if (to === undefined) return `${minimum === undefined ? ">" : "≥"} ${amount(from)}`;
  if (type === "integer") return `${amount(from)} – ${amount(to)}`;
  return `${amount(from)} ${minimum === undefined ? "<" : "≤"} … ${maximum === undefined ? "<" : "≤"} ${amount(to)}`;
}

/** One field: its element, where its value stands, and what is wrong with it. */
class Field {
  /**
   * `read()` is the value to send, undefined to leave it out. `owns` is a pointer whose errors belong here too. `write(raw)`
   * takes a suggestion of the server. `control` is what gets the focus.
   */
  constructor({ pointer, owns, name, control, read, write, isRequired = false }) {
    Object.assign(this, { pointer, owns, name, control, read, write, isRequired });
    this.problem = h("p.new-problem", { id: `problem-${++ids}`, hidden: true });
    const described = control.getAttribute("aria-describedby");
    control.setAttribute("aria-describedby", [described, this.problem.id].filter(Boolean).join(" "));
  }

  clear() {
    this.problem.hidden = true;
    this.control.removeAttribute("aria-invalid");
  }

  show({ detail, allowed = [], did_you_mean: meant }) {
    const offered = meant ? [meant] : detail.includes("unknown") ? (allowed ?? []).slice(0, MOST_SUGGESTED) : [];
    const take = (value) => h("button.new-suggestion", { type: "button", onclick: () => this.write(value) }, value);
    const question = offered.length ? t(meant ? "new.did_you_mean" : "new.allowed") : null;
    fill(this.problem, h("span", {}, worded(detail)), question && h("span", {}, question), offered.map(take));
    this.problem.hidden = false;
    this.control.setAttribute("aria-invalid", "true");
    for (let at = this.problem.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  }

  focus() {
    const inside = this.control.querySelector?.("input:checked") ?? this.control.querySelector?.("input");
    (inside ?? this.control).focus();
  }
}

export class Form {
  #fields = [];

  /** `values` is what was chosen and typed, by key; it outlives the form. `onChange()` is told of each change. */
  constructor(values, onChange) {
    this.values = values;
    this.onChange = onChange;
    this.element = h("form.new-form", { noValidate: true, autocomplete: "off" });
  }

  /** The fields there are now, in the order they stand in. */
  get fields() {
    const isBehind = (field, other) =>
      field.problem.compareDocumentPosition(other.problem) & Node.DOCUMENT_POSITION_PRECEDING;
    const shown = this.#fields.filter(({ problem }) => this.element.contains(problem));
    return shown.sort((field, other) => (isBehind(field, other) ? 1 : -1));
  }

  /** The names of those that must be filled in, and are not yet. */
  get missing() {
    return this.fields.filter(({ isRequired, read }) => isRequired && read() === undefined).map(({ name }) => name);
  }

  /** Make a field known; `element` is where it stands. */
  field(about) {
    const field = new Field(about);
    this.#fields.push(field);
    return field;
  }

  /** Remember what was chosen or typed, and tell. */
  set(key, raw, field) {
    if (raw === "") this.values.delete(key);
    else this.values.set(key, raw);
    field?.clear();
    this.onChange();
  }

  /** What the form says, as the request's body. */
  body() {
    const body = {};
    for (const { pointer, read } of this.fields) {
      const value = read();
      if (value === undefined) continue;
      place(body, pointer.slice(1).split("/"), value);
    }
    return body;
  }

  /** Show the server's errors beside their fields. Returns those that have none, and the first field that has one. */
  show(errors, { isWhole }) {
    for (const field of this.fields) field.clear();
    const homeless = [];
    const wrong = new Set();
    for (const error of errors) {
      const field = this.#fieldOf(error.pointer);
      if (!field) homeless.push(error);
      else if ((isWhole || !isMissing(error)) && !wrong.has(field)) {
        wrong.add(field);
        field.show(error);
      }
    }
    return { homeless, wrong: this.fields.filter((field) => wrong.has(field)) };
  }

  #fieldOf(pointer) {
    const isInside = (place) => pointer === place || pointer.startsWith(`${place}/`);
    const { fields } = this;
    return (
      fields.find((field) => field.pointer === pointer) ??
      fields.find((field) => isInside(field.pointer)) ??
      fields.find((field) => field.owns && isInside(field.owns))
    );
  }

  // --- fields out of schemas -----------------------------------------------------------------------------------------------

  /**
   * The fields of a parameter as the catalogue describes it: `at` is the pointer of the object it belongs to, `of` the choice that
   * has it (two optimizers remember their own `epsilon`), `label` what it is called where its name would say too little.
   */
  parameter({ name, schema, default: preset, required }, { at = "", of = "", label } = {}) {
    const about = { name, pointer: `${at}/${name}`, key: `${of}${at}/${name}`, label, preset, required };
    const kind = bare(schema);
    if ("const" in kind || kind.type === "null") return [];
    const inner = bareObject(schema);
    if (inner) {
      return inner.map((each) =>
        this.parameter({ ...each, required: false }, { at: about.pointer, of, label: `${name}.${each.name}` }),
      );
    }
    if (kind.type === "boolean") return [this.#tick(about)];
    if (kind.enum) return [this.#select(about, kind.enum)];
    return [this.#text(about, kind)];
  }

  #text(about, kind) {
    const { key, preset } = about;
    const isNumber = kind.type === "number" || kind.type === "integer";
    const parse = { array: listOf, object: tagsOf, string: (text) => text }[kind.type] ?? numberOf;
    const write = (raw) => {
      input.value = raw;
      this.set(key, raw, field);
    };
    const presetText = preset === null || typeof preset === "object" ? "" : String(preset ?? "");
    const input = h("input", {
      type: "text",
      name: key,
      inputMode: isNumber ? "decimal" : "text",
      spellcheck: false,
      value: this.values.get(key) ?? presetText,
      placeholder: presetText, // what holds when the field is emptied
      oninput: () => this.set(key, input.value, field),
    });
    const read = () => {
      const value = input.value.trim() === "" ? undefined : parse(input.value);
      return value === preset ? undefined : value;
    };
    const field = this.#labelled(about, input, { read, write, limits: isNumber ? bounds(kind) : "" });
    return field.element;
  }

  #select(about, choices) {
    const { key, preset } = about;
    const options = choices.map((each) => h("option", { value: each }, wordedChoice(about.name, each)));
    const select = h("select", { name: key, onchange: () => this.set(key, select.value, field) }, options);
    select.value = this.values.get(key) ?? preset ?? choices[0];
    const read = () => (select.value === preset ? undefined : select.value);
    const write = (raw) => {
      select.value = raw;
      this.set(key, raw, field);
    };
    const field = this.#labelled(about, select, { read, write });
    return field.element;
  }

  #tick(about) {
    const { key, name, pointer, preset } = about;
    const input = h("input", { type: "checkbox", name: key, id: `field-${++ids}` });
    input.checked = this.values.get(key) ?? preset;
    input.onchange = () => this.set(key, input.checked, field);
    const hint = this.#hint(name, "", input);
    const read = () => (input.checked === preset ? undefined : input.checked);
    const field = this.field({ pointer, name, control: input, read, write: () => {} });
    return h(
      "div.new-field.new-tick",
      {},
      input,
      h("label", { htmlFor: input.id }, labelOf(about)),
      hint,
      field.problem,
    );
  }

  #labelled(about, control, { read, write, limits = "" }) {
    const { name, pointer, required } = about;
    control.id = `field-${++ids}`;
    if (required) control.setAttribute("aria-required", "true");
    const hint = this.#hint(name, limits, control);
    const field = this.field({ pointer, name, control, read, write, isRequired: required });
    const needed = required && h("span.new-required", { title: t("refusal.required") }, " *");
    const label = h("label", { htmlFor: control.id }, labelOf(about), needed);
    field.element = h("div.new-field", {}, label, control, hint, field.problem);
    return field;
  }

  #hint(name, limits, control) {
    const said = has(`new.about.${name}`) ? t(`new.about.${name}`) : "";
    if (!said && !limits) return null;
    const hint = h("p.new-hint", { id: `hint-${++ids}` });
    control.setAttribute("aria-describedby", hint.id);
    return add(hint, said, said && limits ? " " : "", limits && h("span.new-limits", {}, limits));
  }
}

/** A field of the request is called by a word, a parameter of an optimizer by its own name, which the documents use. */
function labelOf({ label, name, pointer }) {
  const word = `new.field.${name}`;
  return pointer === `/${name}` && has(word) ? t(word) : h("code", {}, label ?? name);
}

const wordedChoice = (name, choice) =>
  has(`new.choice.${name}.${choice}`) ? t(`new.choice.${name}.${choice}`) : choice;

/** A folded part of a form, which stays as it was left. */
export function folded(form, name, title, ...children) {
  const key = `#${name}`;
  const open = form.values.get(key) ?? false;
  const ontoggle = () => form.values.set(key, part.open);
  const part = h("details.new-folded", { open, ontoggle }, h("summary", {}, title), children);
  return part;
}

/** A part of a form that is built anew when what it depends on is chosen. */
export function renewed(build) {
  const element = h("div.new-part");
  const renew = () => fill(element, build());
  renew();
  return { element, renew };
}
